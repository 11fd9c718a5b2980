"""Registry of attacks; a separate module, so that attack modules can be imported one by one."""

from llm_forget.core.registry import Registry

KINDS = Registry("attack")
attack_kind = KINDS.register
