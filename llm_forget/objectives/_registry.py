"""Registry of terms; a separate module, so that terms can import the decorator without importing the package."""

from llm_forget.core.registry import Entry, Registry

OBJECTIVES = Registry("objective", Entry)
objective = OBJECTIVES.register
