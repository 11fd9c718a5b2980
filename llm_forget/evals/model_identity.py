"""Check that results were measured on the model in a folder."""

from __future__ import annotations

from llm_forget.core.run_directory import Run
from llm_forget.models.merging.merge_report import Merged


def is_measured(merged: Merged) -> bool:
    """Whether the results in the folder were measured on its weights, as an adapter or unquantised in any dtype."""
    from llm_forget.core.config import model_part
    from llm_forget.core.digests import content_key
    from llm_forget.core.unsupported_keys import DTYPES
    from llm_forget.evals.results_file import read_results
    from llm_forget.models.digest import PRECISION

    model = read_results(Run(merged.folder))["models"]["unlearned"]
    run = Run(merged.folder)
    configs = [run.config] if run.config_file.is_file() else [{}, *({"dtype": dtype} for dtype in DTYPES)]
    model_parts = [model_part(config) for config in configs]
    precisions = [{key: str(getattr(part, key)) for key in PRECISION} for part in model_parts]
    keys = [content_key(base=merged.weights, adapter=None, precision=precision) for precision in precisions]
    return model is not None and model["digest"] in keys
