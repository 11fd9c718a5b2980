"""Convert a block of bytes to the forms that are searched (views), and map positions in a view back to the block.

plain: ASCII letters and digits in lower case, and all bytes beyond ASCII. So a text is found in UTF-16 and in markup.
unescaped: like plain, after JSON, URL and HTML escapes were decoded once or twice.
folded: like unescaped, with NFKC and case folding.
base64: without line breaks, and with the URL alphabet mapped to the standard one.
"""

import html
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

PIECE = 2**14  # number of bytes that are transformed at a time to map positions back
DAMAGED = 0.2  # share of invalid UTF-8 above which a block is not treated as text
_DROPPED = bytes(code for code in range(128) if not chr(code).isalnum())
_LOWER = bytes(range(256)).lower()
_IS_KEPT = np.array([code not in _DROPPED for code in range(256)])
_BASE64_DROPPED = b' \t\r\n"\\'
_STANDARD = bytes.maketrans(b"-_", b"+/")
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad\u180e\ufe00-\ufe0f]+")
_BACKSLASH = re.compile(
    rb"\\+(?:(u[0-9a-fA-F]{4}(?:\\+u[0-9a-fA-F]{4})*)|u\{([0-9a-fA-F]{1,6})\}|U([0-9a-fA-F]{8})|(x[0-9a-fA-F]{2}(?:\\+x[0-9a-fA-F]{2})*)|[nrtbf])"
)
_PERCENT = re.compile(rb"%([0-9a-fA-F]{2})")
_ENTITY = re.compile(rb"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_KINDS = {"json": _BACKSLASH, "url": _PERCENT, "html": _ENTITY}


@dataclass(frozen=True)
class View:
    """One form of a block. ``source`` maps the first and last byte of a span in ``data`` to a span of the block."""

    kind: str
    data: bytes
    source: Callable[[int, int], tuple[int, int]]


def plain(block: bytes) -> bytes:
    """Return a block without ASCII characters other than letters and digits, in lower case. Other bytes are kept."""
    return block.translate(_LOWER, _DROPPED)


def base64_form(block: bytes) -> bytes:
    """Return a block without white space, quotes and backslashes, and with base64's URL alphabet made standard."""
    return block.translate(_STANDARD, _BASE64_DROPPED)


def unescape(block: bytes) -> bytes:
    """Decode the JSON (and Python), URL and HTML escapes in a block, in this order, each once."""
    if b"\\" in block:
        block = _BACKSLASH.sub(_character, block)
    if b"%" in block:
        block = _PERCENT.sub(lambda match: bytes.fromhex(match[1].decode()), block)
    if b"&" in block:
        block = _ENTITY.sub(lambda match: html.unescape(match[0].decode()).encode("utf-8", "replace"), block)
    return block


def fold(text: str) -> str:
    """Remove invisible characters, then apply NFKC and case folding."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold())


def views(block: bytes, *, base64: bool = True) -> Iterator[View]:
    """Yield the views of a block that differ from each other, with base64 views if ``base64`` is set."""
    yield View("plain", plain(block), lambda first, last: _source_of_plain(block, first, last))
    once = unescape(block)
    twice = unescape(once) if once != block else once
    if once != block:
        yield _derived_view("unescaped", block, lambda part: plain(unescape(part)), plain(once))
    if twice != once:
        yield _derived_view("unescaped", block, lambda part: plain(unescape(unescape(part))), plain(twice))
    if not twice.isascii() and (folded := _fold_bytes(twice)):
        yield _derived_view(
            "folded", block, lambda part: plain(_fold_bytes(unescape(unescape(part)), always=True)), plain(folded)
        )
    if base64:
        yield _derived_view("base64", block, base64_form, base64_form(block))
        if once != block:
            yield _derived_view("base64", block, lambda part: base64_form(unescape(part)), base64_form(once))


def encoding_of(view: View, block: bytes, first: int, last: int, needle: str, text: str) -> str:
    """Return the name of the encoding of a match in ``block[first:last]``.

    ``needle`` is the encoding of the needle that matched. It may be wrong: UTF-16 and UTF-32 forms can be equal.
    """
    part = block[first:last]
    if needle in ("hex", "base64"):
        return needle
    if needle in _WIDE or part.count(0) > len(part) / 4:
        pieces = [text[start : start + 4] for start in range(0, len(text), max(4, len(text) // 64))]
        scores = {codec: sum(piece.encode(codec, "replace") in part for piece in pieces) for codec in _WIDE}
        likeliest = max(scores, key=lambda codec: scores[codec])
        if scores[likeliest] or b"\0" in part:
            return likeliest if scores[likeliest] else "utf-16 or utf-32"
    kinds = [kind for kind, escape in _KINDS.items() if view.kind != "plain" and escape.search(part)]
    return "+".join([*kinds, *(["folded"] if view.kind == "folded" and not kinds else [])]) or (
        "utf-8" if part.isascii() else needle
    )


def _character(match: re.Match[bytes]) -> bytes:
    if match[1]:  # two escapes encode a surrogate pair
        return bytes.fromhex(re.sub(rb"\\+|u", b"", match[1]).decode()).decode("utf-16-be", "replace").encode()
    if code := match[2] or match[3]:
        number = int(code, 16)
        return chr(number).encode("utf-8", "replace") if number <= 0x10FFFF else b" "
    if match[4]:  # Python's escape of bytes and of characters below 256
        code = bytes.fromhex(re.sub(rb"\\+|x", b"", match[4]).decode())
        return code if code.decode("utf-8", "ignore").encode() == code else code.decode("latin-1").encode()
    return b" "


def _fold_bytes(block: bytes, *, always: bool = False) -> bytes:
    text = block.decode("utf-8", "replace")
    if not always and text.count("\ufffd") > DAMAGED * len(text):
        return b""
    return fold(text).replace("\ufffd", "").encode()


def _source_of_plain(block: bytes, first: int, last: int) -> tuple[int, int]:
    positions = np.flatnonzero(_IS_KEPT[np.frombuffer(block, np.uint8)])
    return int(positions[first]), int(positions[last]) + 1


def _derived_view(kind: str, block: bytes, change: Callable[[bytes], bytes], data: bytes) -> View:
    """Return a view with ``data``, which ``change`` computed from the block. ``change`` also maps positions back."""
    lengths: list[int] = []

    def position(index: int) -> int:
        if not lengths:
            pieces = (block[start : start + PIECE] for start in range(0, len(block), PIECE))
            lengths.extend(accumulate((len(change(piece)) for piece in pieces), initial=0))
        number = min(bisect_right(lengths, index) - 1, len(lengths) - 2)
        start, rest = number * PIECE, index - lengths[number]
        piece, low, high = block[start : start + PIECE], 0, PIECE
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if len(change(piece[:middle])) <= rest else (low, middle)
        return max(start, start + low - 1)

    def source(first: int, last: int) -> tuple[int, int]:
        begin = position(first)
        return begin if kind == "base64" else _start_of_escape(block, begin), position(last) + 1

    return View(kind, data, source)


def _start_of_escape(block: bytes, position: int) -> int:
    """Return the start of the escape that ends at ``position``, or ``position`` if none ends there."""
    early = max(0, position - 12)
    for escape in _KINDS.values():
        for match in escape.finditer(block, early, position + 1):
            if match.end() == position + 1:
                return match.start()
    return position
