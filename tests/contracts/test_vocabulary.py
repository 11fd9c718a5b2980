"""Docstrings, comments, messages and documents use no word that `.vocabulary` retires."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "eval/README.md")]
ENTRIES = [line.split(" -> ") for line in (ROOT / ".vocabulary").read_text().splitlines() if not line.startswith("#")]
RETIRED = [(re.compile(rf"\b(?:{words})\b".replace(" ", r"\s"), re.I), better) for words, better in ENTRIES]
ANY_RETIRED = re.compile("|".join(regex.pattern for regex, _ in RETIRED), re.I)


def prose(file: Path) -> Iterator[tuple[int, str]]:
    """First line and text of each comment and string; a string without a space is a key or a name."""
    source = file.read_text()
    if file.suffix != ".py":
        yield 1, source
        return
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from ((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.slow
def test_no_docstring_comment_message_or_document_uses_a_retired_word() -> None:
    problems = []
    for file in [*sorted((ROOT / "llm_forget").rglob("*.py")), *DOCUMENTS]:
        for line, text in prose(file):
            words = re.sub(r"`+[^`]+`+", lambda code: "`" + "\n" * code[0].count("\n"), re.sub(r" *\n *", "\n", text))
            if not ANY_RETIRED.search(words):
                continue
            for match, better in ((match, better) for regex, better in RETIRED for match in regex.finditer(words)):
                number = line + words.count("\n", 0, match.start())
                problems.append(f"{file.relative_to(ROOT)}:{number}: {match[0]!r}; better: {better}")
    assert not problems, "\n".join(problems)
