"""The lines of code in a model card: plain transformers and PEFT, nothing of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_forget.report.document import plain
from llm_forget.report.public import hub_id, model_name
from llm_forget.report.read import Evidence

if TYPE_CHECKING:
    from llm_forget.report.card import Statements

UNKNOWN_BASE = "PATH-OF-THE-BASE-MODEL"


@dataclass(frozen=True)
class Names:
    """What the code names, as Python literals: a name can then be nothing but a name."""

    repository: str
    revision: str
    base: str
    base_revision: str | None


def base_in_words(evidence: Evidence, statements: Statements) -> str:
    """The base model's name on the Hub, otherwise the last part of where it lies."""
    base = evidence.provenance.get("base", {})
    before = evidence.results["models"].get("before") or {}
    return statements.base_model or model_name(base) or str(before.get("name", "")) or UNKNOWN_BASE


def placed(repository: str, revision: str, base: str, facts: Mapping[str, Any]) -> Names:
    """Everything quoted. The base's commit is known only of the Hub."""
    commit = str(facts["digest"]).removeprefix("commit:") if hub_id(facts) == base else None
    return Names(_literal(repository), _literal(revision), _literal(base), _literal(commit) if commit else None)


def loading_code(names: Names, *, adapter: bool, tokenizer: bool) -> str:
    """Load it and let it say something; an adapter may come without its base's tokenizer."""
    own = f"{names.repository}, revision={names.revision}"
    if not adapter:
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({own})
tokenizer = AutoTokenizer.from_pretrained({own})
{_SAY}"""
    pinned = f", revision={names.base_revision}" if names.base_revision else ""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({names.base}{pinned})
model = PeftModel.from_pretrained(base, {own})
tokenizer = AutoTokenizer.from_pretrained({own if tokenizer else f"{names.base}{pinned}"})
{_SAY}"""


# After `loading_code`: one model without an adapter.
MERGING_CODE = """merged = model.merge_and_unload(safe_merge=True)
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")"""
_SAY = """
question = "Question: What is the capital of France?\\nAnswer: "
inputs = tokenizer(question, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""


def _literal(text: str) -> str:
    # ASCII and without control characters, so it ends neither the string nor the block of code.
    return json.dumps(plain(text)).replace("`", "\\u0060")
