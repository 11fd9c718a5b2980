"""Registry of terms. It is a separate module because term files import it while the package is being loaded."""

from llm_forget.core.registry import Entry, Registry

OBJECTIVES = Registry("objective", Entry)
objective = OBJECTIVES.register
