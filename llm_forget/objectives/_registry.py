"""Where terms are filed: a module of its own, so that terms import the decorator and the package imports the terms."""

from llm_forget.core.registry import Registry

OBJECTIVES = Registry("objective")
objective = OBJECTIVES.register
