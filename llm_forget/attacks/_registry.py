"""The table of attacks on a run; apart from `attack.py` so that its files can be imported one by one."""

from llm_forget.core.registry import Registry

KINDS = Registry("attack")
attack_kind = KINDS.register
