"""Write the Python code in a model card. The code needs transformers and PEFT, but not this package."""

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
    from llm_forget.core.formats.publication import CardStatements

UNKNOWN_BASE = "PATH-OF-THE-BASE-MODEL"


@dataclass(frozen=True)
class CodeNames:
    """The names in the code, as Python string literals, so that a name cannot inject code."""

    repository: str
    revision: str
    base: str  # Hub id or public name of the base model
    base_revision: str | None  # commit of a base on the Hub


def base_name(evidence: Evidence, statements: CardStatements) -> str:
    """Return the Hub id of the base model or, if it has none, its public name or a placeholder."""
    base = evidence.provenance.get("base", {})
    before = evidence.results["models"].get("before") or {}
    return statements.base_model or model_name(base) or str(before.get("name", "")) or UNKNOWN_BASE


def code_names(repository: str, revision: str, base: str, facts: Mapping[str, Any]) -> CodeNames:
    """Return all names as Python literals. ``facts`` is the entry of the base model in provenance.json."""
    commit = str(facts["digest"]).removeprefix("commit:") if hub_id(facts) == base else None
    return CodeNames(_literal(repository), _literal(revision), _literal(base), _literal(commit) if commit else None)


@dataclass(frozen=True)
class PromptFormat:
    """The prompt format of training, and whether the folder of weights has its own tokenizer."""

    template: str | None  # text that contains {prompt}; None: the tokenizer's chat template
    tokenizer: bool  # whether the folder of weights has a tokenizer


def prompt_format(folder: Path, config: Mapping[str, Any]) -> PromptFormat:
    """Return the prompt format that a folder of weights and a recipe define."""
    file = folder / "tokenizer_config.json"
    chat = (folder / "chat_template.jinja").is_file() or (file.is_file() and "chat_template" in read_json(file))
    use_chat = config.get("use_chat_template")
    template = str(config.get("prompt_template") or DEFAULT_PROMPT_TEMPLATE)
    return PromptFormat(None if (chat if use_chat is None else use_chat) else template, file.is_file())


def loading_code(
    names: CodeNames, prompting: PromptFormat, *, adapter: bool, form: Mapping[str, Any] | None = None
) -> str:
    """Return code that loads the model and generates text. ``form`` is the content of export.json, if exported."""
    arguments = f"{names.repository}, revision={names.revision}"
    if not adapter:
        file = f", gguf_file={_literal(form['file'])}" if form and form["file"] else ""
        needs = {True: "  # pip install gguf", False: "  # pip install bitsandbytes"}[bool(file)] if form else ""
        return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({arguments}{file}){needs}
tokenizer = AutoTokenizer.from_pretrained({arguments})
{_generation_code(prompting)}"""
    pinned = f", revision={names.base_revision}" if names.base_revision else ""
    return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({names.base}{pinned})
model = PeftModel.from_pretrained(base, {arguments})
tokenizer = AutoTokenizer.from_pretrained({arguments if prompting.tokenizer else f"{names.base}{pinned}"})
{_generation_code(prompting)}"""


# Code that merges the adapter into the base. It runs after `loading_code`.
MERGING_CODE = """merged = model.merge_and_unload(safe_merge=True)
merged.save_pretrained("merged")
tokenizer.save_pretrained("merged")"""
QUESTION = "What is the capital of France?"


def _generation_code(prompting: PromptFormat) -> str:
    """Return code that formats a prompt as in training and generates an answer."""
    if prompting.template is None:
        inputs = f"""messages = [{{"role": "user", "content": "{QUESTION}"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
    else:
        # One line of ASCII: line breaks are escaped as well.
        question = ascii(prompting.template.replace("{prompt}", QUESTION)).replace("`", "\\x60")
        inputs = f"""question = {question}
inputs = tokenizer(question, return_tensors="pt")"""
    return f"""
{inputs}
output = model.generate(**inputs, max_new_tokens=20)
print(tokenizer.decode(output[0], skip_special_tokens=True))"""


def _literal(text: str) -> str:
    # ASCII without control characters or backticks, so it cannot end the string or the code block.
    return json.dumps(plain(text)).replace("`", "\\u0060")
