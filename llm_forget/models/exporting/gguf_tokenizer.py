"""Describe a fast BPE tokenizer with the keys of GGUF, and check that the file gives the same tokenizer again.

A tokenizer splits a text by a rule before it merges characters. A GGUF file contains only the name of this rule
(``tokenizer.ggml.pre``). Only rules that have a name in llama.cpp are supported.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.core.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {LLAMA3: "llama-bpe", QWEN2: "qwen2"}
# Rules that transformers loads only approximately. It replaces "smollm" by GPT-2's rule, adds SentencePiece's leading
# space in another place ("default"), and omits NFC for "qwen2", as llama.cpp does.
APPROXIMATED = ("smollm", "default", "qwen2")
# Synthetic texts (no data rows): words, numbers, spaces, lines, scripts and symbols.
SAMPLES = (
    "", "a", " a", "  a", "a ", "Hello world", " Hello  world!", "Don't they've I'll, we'd?", "Größe, naïve, œuvre",
    "1", "12 345 6789 3.14159", "2026-11-22T18:30", "line\nnext\r\n\n\tindented\n", "snake_case camelCase HTTPServer",
    "你好，世界。", "こんにちは", "Привет, мир!", "שלום עולם", "مرحبا", "नमस्ते", "한국어", "🙂🙃 👩\u200d👩\u200d👧 €5",
    "e\u0301", "\u00a0x\u200b", "def f(x):\n    return x ** 2  # ok\n", '<tag attr="v">&amp;</tag>',
    "https://example.org/a?b=c&d=%20", "$%^&*()[]{}|\\~`",
)  # fmt: skip
ELSEWHERE = "convert the folder with llama.cpp's convert_hf_to_gguf.py"


@dataclass(frozen=True)
class TokenizerDescription:
    """The tokenizer fields of a GGUF file."""

    model: str  # gpt2 (byte-level BPE) | llama (SentencePiece's BPE)
    pre: str  # name of the rule that splits text
    tokens: list[str]  # one for each row of the embedding
    kinds: list[int]  # GGUF's type of each token
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ids: dict[str, int] = field(default_factory=dict)  # token ids of bos, eos, unk, pad
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool | None = None
    chat_template: str | None = None

    def add_to(self, writer: Any) -> None:
        """Write the fields to a ``GGUFWriter``."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, number in self.ids.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        if self.add_space_prefix is not None:
            writer.add_add_space_prefix(self.add_space_prefix)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)

    def summary(self) -> dict[str, Any]:
        """Return the fields ``model`` and ``pre`` and the number of ``tokens``, for reports."""
        return {"model": self.model, "pre": self.pre, "tokens": len(self.tokens)}


def describe_tokenizer(tokenizer: Any, rows: int) -> TokenizerDescription:
    """Return the GGUF fields of a tokenizer, with one token for each of the ``rows`` rows of the embedding.

    Raise ModelError if the tokenizer is not BPE, has no merges, has more tokens than rows, or splits text by an
    unsupported rule.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ModelError(f"the tokenizer is a {model['type']}, and GGUF export supports only BPE; {ELSEWHERE}")
    vocabulary = tokenizer.get_vocab()
    if vocabulary and max(vocabulary.values()) >= rows:
        raise ModelError(f"the tokenizer has tokens up to {max(vocabulary.values())}, and the model {rows} rows")
    spaces = _sentencepiece(content)
    tokens, kinds = _tokens(tokenizer, content, rows, bytes_too=spaces is not None)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    if not merges:
        raise ModelError(f"the tokenizer has no merges, and llama.cpp requires them for BPE; {ELSEWHERE}")
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    encoded = tokenizer("a").input_ids
    template = tokenizer.chat_template
    common: dict[str, Any] = {
        "tokens": tokens,
        "kinds": kinds,
        "ids": {name: number for name, number in ids.items() if number is not None},
        "add_bos": ids["bos"] is not None and encoded[:1] == [ids["bos"]],
        "add_eos": ids["eos"] is not None and encoded[-1:] == [ids["eos"]],
        "chat_template": template if isinstance(template, str) else None,
    }
    if spaces is None:
        return TokenizerDescription("gpt2", _pre_tokenizer_name(content), merges=merges, **common)
    scores = _scores(tokens, merges)
    return TokenizerDescription("llama", "default", scores=scores, add_space_prefix=spaces, **common)


def _tokens(tokenizer: Any, content: dict[str, Any], rows: int, *, bytes_too: bool) -> tuple[list[str], list[int]]:
    """Return (tokens, GGUF types of the tokens) in the order of ids. Rows without a token get a placeholder."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in content["added_tokens"]}
    unknown = content["model"].get("unk_token")
    tokens, kinds = [], []
    for number in range(rows):
        token = by_id.get(number, f"[PAD{number}]")
        kind = added.get(number, NORMAL if number in by_id else UNUSED)
        if bytes_too and token == unknown:
            kind = UNKNOWN
        elif bytes_too and len(token) == 6 and token.startswith("<0x"):
            kind = BYTE
        tokens.append(token)
        kinds.append(kind)
    return tokens, kinds


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Return the score of each token: the negative rank of its first merge. SentencePiece merges high scores first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _sentencepiece(content: dict[str, Any]) -> bool | None:
    """Return whether a SentencePiece BPE tokenizer adds a space before a text. Return None for other tokenizers."""
    if not content["model"].get("byte_fallback"):
        return None
    for part in _parts(content["normalizer"], "normalizers"):
        if part["type"] == "Prepend":
            return True
    for part in _parts(content["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "Metaspace":
            return part.get("prepend_scheme") != "never"
    return False


def _parts(content: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if content is None:
        return []
    return content[key] if content["type"] == "Sequence" else [content]


def _pre_tokenizer_name(content: dict[str, Any]) -> str:
    """Return llama.cpp's name of the rule by which a byte-level tokenizer splits text. Raise ModelError if unnamed."""
    normal = [part["type"] for part in _parts(content["normalizer"], "normalizers")]
    parts = _parts(content["pre_tokenizer"], "pretokenizers")
    kinds = [part["type"] for part in parts]
    if not set(normal) - {"NFC"} and kinds[-1:] == ["ByteLevel"] and not parts[-1]["add_prefix_space"]:
        whole = parts[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and whole:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and whole:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and not whole and parts[0]["behavior"] == "Isolated":
            pattern = parts[0]["pattern"].get("Regex")
            if pattern in SPLITS:
                return SPLITS[pattern]
    rule = " and ".join([*normal, *kinds]) or "nothing"
    raise ModelError(f"the tokenizer splits text by {rule}, a rule that has no name in GGUF; {ELSEWHERE}")


def check_tokenizer(tokenizer: Any, path: Path, pre: str) -> dict[str, Any]:
    """Load the tokenizer from a GGUF file, and compare its tokens with those of the original on sample texts.

    Return the number of sample texts (``samples``) and of those with different tokens (``differing``). transformers
    loads some splitting rules only approximately (`APPROXIMATED`). If ``pre`` is one of them, differences that this
    explains are accepted. Raise ModelError if the tokens of a text differ for another reason.
    """
    from transformers import AutoTokenizer

    back: Any = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())][:256]
    samples = [*SAMPLES, *(f"one {token}two {token}" for token in added)]
    differing = _differing(tokenizer, back, samples)
    if differing and pre in APPROXIMATED:
        adjusted = _split_like(tokenizer, back)
        worst = _differing(adjusted, back, samples)
    else:
        worst = differing
    if worst:
        raise ModelError(
            f"{worst} of {len(samples)} sample texts are cut into other tokens by the tokenizer that is read back from "
            f"GGUF; {ELSEWHERE}"
        )
    return {"samples": len(samples), "differing": differing}


def _differing(tokenizer: Any, other: Any, samples: list[str]) -> int:
    return sum(tokenizer(text).input_ids != other(text).input_ids for text in samples)


def _split_like(tokenizer: Any, other: Any) -> Any:
    """Return a copy of ``tokenizer`` with the normalizer and the pre-tokenizer of ``other``."""
    import copy

    copied = copy.deepcopy(tokenizer)
    for part in ("normalizer", "pre_tokenizer"):
        setattr(copied.backend_tokenizer, part, getattr(other.backend_tokenizer, part))
    return copied
