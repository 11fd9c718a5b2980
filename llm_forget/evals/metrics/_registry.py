"""The table of metrics; apart from the package's ``__init__`` so that its files can be imported one by one."""

from llm_forget.registry import Registry

METRICS = Registry("metric")
metric = METRICS.register
