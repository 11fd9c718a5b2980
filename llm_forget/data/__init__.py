"""Sources of rows, rows as tokens, and the order in which rows are seen."""

from llm_forget.data.alternates import load_refusals, pair_windows, with_alternates
from llm_forget.data.collate import collate
from llm_forget.data.rows import check_overlap, with_completion
from llm_forget.data.sources import load_source, mixture_weights
from llm_forget.data.stream import RankBatches, RetainStream, StepSampler
from llm_forget.data.template import Template, template_for
from llm_forget.data.tokenise import Encoded, encode_prompt, encode_row, encode_rows, tokenise_dataset

__all__ = [
    "Encoded",
    "RankBatches",
    "RetainStream",
    "StepSampler",
    "Template",
    "check_overlap",
    "collate",
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
