"""Render a row as one string, mark the spans of its answers, and distinguish control tokens from text.

If an answer contains the text ``</s>``, this text must not end the turn. Therefore special-token strings in a row are
masked before the chat template is applied. Then the control tokens of the template are renamed, and the text of the
row is restored.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from llm_forget.core.errors import DataError
from llm_forget.data.rows import Message, Row, conversation, is_text

TEMPLATE_KEYS = ("use_chat_template", "prompt_template", "completion_end", "system_prompt", "chat_template_kwargs")
DEFAULT_PROMPT_TEMPLATE = "Question: {prompt}\nAnswer: "
_CONTROL = "\ufdd0\ufdd1"  # delimiters around the id of a control token
_DATA = re.compile("\ufdd2(\\d+)\ufdd3")  # a special-token string that is text of the row
_START, _END, _CONTENT_END = "\ufdd4", "\ufdd5", "\ufdd6"  # start and end of a target, end of an assistant's content
_RESERVED = re.compile("[\ufdd0-\ufdd6]")
_END_OF_TURN = re.compile("\\s*\ufdd0\\d+\ufdd1")


@dataclass(frozen=True)
class Template:
    """The format of prompts and completions: the tokenizer's chat template, or the strings of a recipe."""

    chat: bool  # True: use the chat template, and ignore prompt_template and completion_end
    prompt_template: str = DEFAULT_PROMPT_TEMPLATE
    completion_end: str | None = None  # default: the tokenizer's end-of-sequence token
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"enable_thinking": False}


@dataclass(frozen=True)
class Rendered:
    """A row as text with renamed control tokens (see `control_name`), and the spans of characters that carry loss."""

    text: str
    targets: list[tuple[int, int]]


def template_for(
    tokenizer: Any,
    *,
    use_chat_template: bool | None = None,
    prompt_template: str = DEFAULT_PROMPT_TEMPLATE,
    completion_end: str | None = None,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Template:
    """Return the template, by default the tokenizer's chat template if it has one. Raise DataError for bad settings."""
    if use_chat_template and not tokenizer.chat_template:
        raise DataError("use_chat_template is true, but this tokenizer has no chat template; set it to false")
    if prompt_template.count("{prompt}") != 1:
        raise DataError("prompt_template must contain {prompt} exactly once, like 'Question: {prompt}\\nAnswer: '")
    chat = bool(tokenizer.chat_template) if use_chat_template is None else use_chat_template
    if not chat and completion_end is None and tokenizer.eos_token is None:
        raise DataError("this tokenizer has no end-of-sequence token; set completion_end to mark the end of answers")
    return Template(chat, prompt_template, completion_end, system_prompt, dict(chat_template_kwargs or {}))


def control_name(number: int) -> str:
    """Return the name of the control token with id ``number`` in rendered strings. No row can contain this name."""
    return f"{_CONTROL[0]}{number}{_CONTROL[1]}"


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Return ``{string: id}`` of the special tokens, longest first. Other added tokens (``<tool_call>``) are text."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    special |= {name: tokenizer.convert_tokens_to_ids(name) for name in tokenizer.all_special_tokens}
    return dict(sorted(special.items(), key=lambda item: -len(item[0])))


def render(row: Row, tokenizer: Any, template: Template, special: Mapping[str, int]) -> Rendered:
    """Render a row, with ``special`` from `special_tokens`. Raise DataError if the template refuses its messages."""
    masking = _Masking(special)
    if is_text(row):
        return _finish(_START + masking.hide(row["text"], row) + _END, masking)
    messages, first = conversation(row)
    if template.system_prompt is not None and messages[0]["role"] != "system":
        messages, first = [{"role": "system", "content": template.system_prompt}, *messages], first + 1
    hidden = [{key: masking.hide(value, row) for key, value in m.items()} for m in messages]
    answers = [i for i, m in enumerate(hidden) if i >= first and m["role"] == "assistant"]
    if template.chat:
        return _finish(_render_chat(hidden, answers, tokenizer, template, masking, str(row["id"])), masking)
    return _finish(_render_plain(hidden, answers, tokenizer, template, str(row["id"])), masking)


class _Masking:
    """Masks special-token strings in the text of a row, and renames the control tokens of the template."""

    def __init__(self, special: Mapping[str, int]) -> None:
        self._names = list(special)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._ids = special
        self._pattern = _any_of(tuple(self._names))

    def hide(self, text: Any, row: Row) -> Any:
        if not isinstance(text, str):
            return text
        if _RESERVED.search(text):
            raise DataError(f"row '{row['id']}' contains a Unicode noncharacter (U+FDD0 to U+FDD6); remove it")
        return self._pattern.sub(lambda match: f"\ufdd2{self._numbers[match[0]]}\ufdd3", text)

    def name_controls(self, text: str) -> str:
        return self._pattern.sub(lambda match: control_name(self._ids[match[0]]), text)

    def reveal(self, text: str) -> str:
        return _DATA.sub(lambda match: self._names[int(match[1])], text)


@cache
def _any_of(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def _finish(text: str, masking: _Masking) -> Rendered:
    text = masking.reveal(masking.name_controls(text))
    pieces, targets, length = [], [], 0
    for piece in re.split(f"([{_START}{_END}])", text):
        if piece == _START:
            targets.append((length, length))
        elif piece == _END:
            targets[-1] = (targets[-1][0], length)
        else:
            pieces.append(piece)
            length += len(piece)
    # Drop text after the last target, such as a line break, because it cannot affect a causal model.
    return Rendered("".join(pieces)[: targets[-1][1] if targets else 0], targets)


def _render_plain(messages: list[Message], answers: list[int], tokenizer: Any, template: Template, row_id: str) -> str:
    end = tokenizer.eos_token if template.completion_end is None else template.completion_end
    system = messages[0]["content"] + "\n" if messages[0]["role"] == "system" else ""
    turns = messages[1:] if system else messages
    if [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(
            f"row '{row_id}' has the roles {_roles(messages)}; without a chat template they must be user and assistant "
            "in turn"
        )
    text, offset = system, len(messages) - len(turns)
    for index in range(0, len(turns), 2):
        prompt, answer = turns[index]["content"], turns[index + 1]["content"]
        start, stop = (_START, _END) if index + 1 + offset in answers else ("", "")
        text += template.prompt_template.replace("{prompt}", prompt) + start + answer + end + stop
    return text


def _render_chat(
    messages: list[Message], answers: list[int], tokenizer: Any, template: Template, masking: _Masking, row_id: str
) -> str:
    """Render a conversation with the chat template, and return the text with marks around the answers.

    To find the start of an answer, the messages before it are also rendered alone, with the generation prompt. The
    answer starts where this prompt ends, or where it first differs from the whole text (some templates insert an empty
    thinking block). The answer ends with the first control token after its content, or with the end-of-sequence token.
    """
    marked = [dict(m) for m in messages]
    for index in answers:
        content = marked[index]["content"]
        core = content.rstrip()  # templates strip content; the mark must not prevent that
        marked[index]["content"] = core + _CONTENT_END + content[len(core) :]

    def apply(part: Sequence[Message], *, generation: bool = False) -> str:
        return masking.name_controls(_apply(part, tokenizer, template, row_id, generation=generation))

    whole = apply(marked)
    starts = [_answer_start(marked[:index], whole, apply, row_id) for index in answers]
    if len(starts) != whole.count(_CONTENT_END) or starts != sorted(set(starts)):
        raise DataError(f"row '{row_id}': the chat template omits or moves an assistant message")
    for start in reversed(starts):
        whole = whole[:start] + _START + whole[start:]
    return _mark_ends(whole, tokenizer, masking, row_id)


def _answer_start(before: list[Message], whole: str, apply: Callable[..., str], row_id: str) -> int:
    if not any(m["role"] != "system" for m in before):
        raise DataError(f"row '{row_id}' begins with an assistant message; put a user message before it")
    prompt = apply(before, generation=True)
    same = _common_prefix(prompt, whole)
    if same.rfind(_CONTROL[0]) > same.rfind(_CONTROL[1]):
        same = same[: same.rfind(_CONTROL[0])]  # never split the name of a control token
    if len(same) < len(prompt) and not same.startswith(apply(before).rstrip()):
        raise DataError(f"row '{row_id}': the chat template rewrites earlier turns; use one row per answer")
    return len(same)


def _common_prefix(first: str, second: str) -> str:
    if second.startswith(first):
        return first
    differ = (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differ, min(len(first), len(second)))]


def _mark_ends(text: str, tokenizer: Any, masking: _Masking, row_id: str) -> str:
    head, *tails = text.split(_CONTENT_END)
    for index, tail in enumerate(tails):
        end_of_turn = _END_OF_TURN.match(tail)
        if end_of_turn is not None:
            head += end_of_turn[0] + _END + tail[end_of_turn.end() :]
        elif index < len(tails) - 1:
            head += _END + tail
        elif tokenizer.eos_token is not None:
            head += masking.name_controls(tokenizer.eos_token) + _END
        else:
            raise DataError(f"row '{row_id}': neither chat template nor tokenizer has a token that ends a turn")
    return head


def _apply(messages: Sequence[Message], tokenizer: Any, template: Template, row_id: str, *, generation: bool) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation, **template.chat_template_kwargs
        )
    except (TemplateError, TypeError):
        # `from None`: the template's error may quote the message.
        raise DataError(
            f"row '{row_id}' has the roles {_roles(messages)}, which the chat template refuses; change the row or set "
            "use_chat_template: false"
        ) from None


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(m["role"][:20] for m in messages[:8]) + (", ..." if len(messages) > 8 else "")
