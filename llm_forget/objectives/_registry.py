"""Registry of terms; a separate module, so that terms can import the decorator without importing the package."""

from llm_forget.core.registry import Registry

OBJECTIVES = Registry("objective")
objective = OBJECTIVES.register
