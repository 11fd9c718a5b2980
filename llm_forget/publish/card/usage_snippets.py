"""The lines of code in a model card: plain transformers and PEFT, nothing of this package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_forget.core.files import read_json
from llm_forget.core.text import plain
from llm_forget.data.template import DEFAULT_PROMPT_TEMPLATE
from llm_forget.publish.anonymise import hub_id, model_name
from llm_forget.report.run_evidence import Evidence

if TYPE_CHECKING:
    from llm_forget.publish.card.statements import Statements

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


@dataclass(frozen=True)
class Asking:
    """How the model was asked in training, and whether its folder has a tokenizer of its own."""

    template: str | None  # with {prompt}; None: the tokenizer's chat template
    tokenizer: bool


def asking(folder: Path, config: Mapping[str, Any]) -> Asking:
    """From a folder of weights and a recipe."""
    file = folder / "tokenizer_config.json"
    chat = (folder / "chat_template.jinja").is_file() or (file.is_file() and "chat_template" in read_json(file))
    wanted = config.get("use_chat_template")
    template = str(config.get("prompt_template") or DEFAULT_PROMPT_TEMPLATE)
    return Asking(None if (chat if wanted is None else wanted) else template, file.is_file())


def loading_code(names: Names, how: Asking, *, adapter: bool, form: Mapping[str, Any] | None = None) -> str:
    """Load it and let it say something; an adapter may come without its base's tokenizer.

    Args:
        form: content of export.json, where another form was written.
    """
    own = f"{names.repository}, revision={names.revision}"
    if not adapter:
        file = f", gguf_file={_literal(form['file'])}" if form and form["file"] else ""
        needs = {True: "  # pip install gguf", False: "  # pip install bitsandbytes"}[bool(file)] if form else ""
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({own}{file}){needs}
tokenizer = AutoTokenizer.from_pretrained({own})
{_say(how)}"""
    pinned = f", revision={names.base_revision}" if names.base_revision else ""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({names.base}{pinned})
model = PeftModel.from_pretrained(base, {own})
tokenizer = AutoTokenizer.from_pretrained({own if how.tokenizer else f"{names.base}{pinned}"})
{_say(how)}"""


# After `loading_code`: one model without an adapter.
MERGING_CODE = """merged = model.merge_and_unload(safe_merge=True)
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")"""
QUESTION = "What is the capital of France?"


def _say(how: Asking) -> str:
    """Ask as in training: otherwise what is said tells little."""
    if how.template is None:
        inputs = f"""messages = [{{"role": "user", "content": "{QUESTION}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
    else:
        inputs = f"""question = {_python(how.template.replace("{prompt}", QUESTION))}
inputs = tokenizer(question, return_tensors="pt")"""
    return f"""
{inputs}
output = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""


def _literal(text: str) -> str:
    # ASCII and without control characters, so it ends neither the string nor the block of code.
    return json.dumps(plain(text)).replace("`", "\\u0060")


def _python(text: str) -> str:
    # Line breaks are escaped as well, so it is one line of ASCII.
    return ascii(text).replace("`", "\\x60")
