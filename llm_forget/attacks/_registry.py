"""Registry of attacks; a separate module, so that attack modules can be imported one by one."""

from llm_forget.core.registry import Entry, Registry

KINDS = Registry("attack", Entry)
attack_kind = KINDS.register
