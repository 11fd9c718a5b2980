"""Sources of rows, and rows as tokens."""

from llm_forget.data.alternates import load_refusals, pair_windows, with_alternates
from llm_forget.data.rows import check_overlap, with_completion
from llm_forget.data.sources import load_source, mixture_weights
from llm_forget.data.template import Template, template_for
from llm_forget.data.tokenise import Encoded, encode_prompt, encode_row, encode_rows, tokenise_dataset

__all__ = [
    "Encoded",
    "Template",
    "check_overlap",
    "encode_prompt",
    "encode_row",
    "encode_rows",
    "load_refusals",
    "load_source",
    "mixture_weights",
    "pair_windows",
    "template_for",
    "tokenise_dataset",
    "with_alternates",
    "with_completion",
]
