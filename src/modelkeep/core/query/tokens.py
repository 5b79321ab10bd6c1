"""Characters to tokens, and the two lines that show where a filter went wrong.

Written by hand: each character is looked at a bounded number of times, and nothing here backs up. It does not
know the grammar, nor which fields there are.
"""

import math
import unicodedata
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.query.tree import SIGNS, is_key_character

INT64 = range(-(2**63), 2**63)
"""Whole numbers that every store can hold."""
_CARET_WINDOW = 60
"""Characters shown on each side of a mistake, so that the caret stays on one line of a terminal."""

KEYWORDS = frozenset(
    ("and", "or", "not", "in", "range", "like", "ilike", "is", "null", "exists", "true", "false")
)
"""Words of the grammar, in any case; no field may have such a name."""
_DIGITS = frozenset("0123456789")
_CURLY_QUOTES = frozenset("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb")
_OTHER_LANGUAGES = {"=>": ">=", "=<": "<=", "&&": "and", "||": "or"}
"""What people write by habit, and what it is here."""
_ESCAPES = {"n": "\n", "t": "\t"} | {c: c for c in "\\\"'`%_"}
_ESCAPED_IN_PATTERN = frozenset("\\%_")


class TokenKind(StrEnum):
    """What a token is; END stands once, after the last character."""

    WORD = "word"
    TEXT = "text"
    NUMBER = "number"
    SIGN = "sign"
    END = "end"


class Token(Struct, frozen=True):
    """`text` is a word up to its first dot, a string's content, a number's digits, or a sign; `key` what
    follows a word's first dot; `pattern` a string's content as a `like` pattern."""

    kind: TokenKind
    start: int
    end: int
    text: str = ""
    key: str | None = None
    pattern: str = ""
    number: int | float = 0

    def says(self, word: str) -> bool:
        """Whether this is that keyword, given in lower case."""
        return self.kind is TokenKind.WORD and self.key is None and self.text.lower() == word

    def signs(self, sign: str) -> bool:
        """Whether this is that sign."""
        return self.kind is TokenKind.SIGN and self.text == sign


def _is_head_character(char: str) -> bool:
    return char.isalnum() or char in "_-"


def _span(text: str, place: int, belongs: Callable[[str], bool]) -> int:
    """Where the run of characters that belong ends."""
    while place < len(text) and belongs(text[place]):
        place += 1
    return place


def _number_end(text: str, place: int) -> int:
    """Where the number that begins at `place` ends; `place` itself when none begins there."""
    begin = place + (text[place : place + 1] in ("+", "-"))
    whole = _span(text, begin, _DIGITS.__contains__)
    end = _span(text, whole + 1, _DIGITS.__contains__) if text[whole : whole + 1] == "." else whole
    if end - begin - (end > whole) <= 0:
        return place
    if text[end : end + 1] in ("e", "E"):
        power = end + 1 + (text[end + 1 : end + 2] in ("+", "-"))
        power_end = _span(text, power, _DIGITS.__contains__)
        end = power_end if power_end > power else end
    return end


def tokenize(text: str) -> list[Token]:
    """All tokens, closed by an END.

    Raises:
        InvalidFilter: a character, number, string or key that cannot be one.
    """
    found: list[Token] = []
    place = 0
    while place < len(text):
        char = text[place]
        if char.isspace():
            place += 1
            continue
        if char in "\"'":
            token = _read_text(text, place)
        elif char.isalpha() or char == "_":
            token = _read_word(text, place)
        elif _number_end(text, place) > place:
            token = _read_number(text, place)
        else:
            token = _read_sign(text, place)
        found.append(token)
        place = token.end
    found.append(Token(TokenKind.END, len(text), len(text)))
    return found


def _read_sign(text: str, place: int) -> Token:
    habit = text[place : place + 2]
    if habit in _OTHER_LANGUAGES:
        raise error_at(text, place, f"{shown(habit)} means nothing here; write {_OTHER_LANGUAGES[habit]}.")
    for length in (2, 1):
        sign = text[place : place + length]
        if sign in SIGNS or sign in ("(", ")", ","):
            return Token(TokenKind.SIGN, place, place + length, sign)
    char = text[place]
    match char:
        case "!":
            advice = "; write not before a condition, or != between two sides"
        case "`":
            advice = "; backticks go around a key only, as in tags.`a key`"
        case _ if char in _CURLY_QUOTES:
            advice = "; use straight quotes, ' or \""
        case _:
            advice = "; put text in quotes, and a key with odd characters in backticks"
    raise error_at(text, place, f"{shown(char)} means nothing here{advice}.")


def _read_number(text: str, place: int) -> Token:
    end = _number_end(text, place)
    rest = _span(text, end, is_key_character)
    piece = text[place:end]
    if rest > end:
        raise error_at(
            text, place, f"{shown(text[place:rest])} is not a number; put text, times and versions in quotes."
        )
    if piece.lstrip("+-").isdigit():
        number: int | float = int(piece)
        if number not in INT64:
            raise error_at(
                text, place, f"The number {shown(piece)} does not fit 64 bits; write a smaller one."
            )
    else:
        number = float(piece)
        if not math.isfinite(number):
            raise error_at(text, place, f"The number {shown(piece)} is too large; write a smaller one.")
    return Token(TokenKind.NUMBER, place, end, piece, number=number)


def _read_word(text: str, place: int) -> Token:
    head_end = _span(text, place, _is_head_character)
    head = text[place:head_end]
    if text[head_end : head_end + 1] != ".":
        return Token(TokenKind.WORD, place, head_end, head)
    begin = head_end + 1
    if text[begin : begin + 1] in ("`", '"'):
        quoted = _read_text(text, begin)
        key, end = quoted.text, quoted.end
    else:
        end = _span(text, begin, is_key_character)
        key = text[begin:end]
    if not key:
        raise error_at(text, begin, f"No key follows the dot; write {shown(head, quote=False)}.KEY.")
    if len(key) > values.TAG_KEY_MAX:
        raise error_at(
            text, begin, f"The key has {len(key):,} characters; keys have at most {values.TAG_KEY_MAX}."
        )
    return Token(TokenKind.WORD, place, end, head, key)


def _read_text(text: str, start: int) -> Token:
    """A string in its quotes, both as the text it stands for and as a `like` pattern."""
    quote = text[start]
    content: list[str] = []
    pattern: list[str] = []
    place = start + 1
    while place < len(text):
        char = text[place]
        if char == quote:
            return Token(TokenKind.TEXT, start, place + 1, "".join(content), pattern="".join(pattern))
        if char == "\0" or "\ud800" <= char <= "\udfff":
            raise error_at(text, place, f"{shown(char)} cannot be part of any stored text; remove it.")
        escaped = char == "\\" and place + 1 < len(text)
        if escaped:
            place += 1
            if text[place] not in _ESCAPES:
                raise error_at(
                    text,
                    place - 1,
                    f"{shown(text[place - 1 : place + 1])} is no escape; write \\\\ for a backslash.",
                )
            char = _ESCAPES[text[place]]
        content.append(char)
        pattern.append(f"\\{char}" if escaped and char in _ESCAPED_IN_PATTERN else char)
        place += 1
    raise error_at(text, start, f"The quote that opens here is never closed; end the text with {quote}.")


def as_number(text: str) -> float | None:
    """The number a parameter or tag holds, or None when it holds none. A store keeps this beside the text.

    Only what is a number in a filter is one here: no spaces around it, no `nan`, no `inf`, no `1_000`.
    """
    if not text or _number_end(text, 0) != len(text):
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def error_at(text: str, place: int, message: str, **details: Any) -> errors.InvalidFilter:
    """The error about this place of the text, for the caller to raise; details that are None are left out."""
    known = {name: value for name, value in details.items() if value is not None}
    return errors.InvalidFilter(values.printable(message), **place_details(text, place), **known)


def place_details(text: str, place: int) -> dict[str, Any]:
    """What every error about a place carries."""
    # A lone surrogate (an undecodable byte of a command line) cannot be sent as JSON; '?' keeps the position.
    return {
        "filter": text.encode("utf-8", "replace").decode("utf-8"),
        "position": place,
        "caret": caret(text, place),
    }


def caret(text: str, place: int) -> str:
    """Two lines to print: the filter's line around the place, and a caret under the place."""
    line_start = text.rfind("\n", 0, place) + 1
    line_end = text.find("\n", place)
    line_end = len(text) if line_end < 0 else line_end
    first, last = max(line_start, place - _CARET_WINDOW), min(line_end, place + _CARET_WINDOW)
    before = ("..." if first > line_start else "") + values.printable(text[first:place])
    after = values.printable(text[place:last]) + ("..." if last < line_end else "")
    return f"{before}{after}\n{' ' * sum(map(_columns, before))}^"


def _columns(char: str) -> int:
    """How many columns of a terminal a character takes."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def shown(text: str, *, quote: bool = True) -> str:
    """Text of the caller as it may stand in a message: printable, and short."""
    short = values.printable(text if len(text) <= 40 else f"{text[:40]}...")
    return f"'{short}'" if quote else short


def nearest(word: str, candidates: list[str]) -> str | None:
    """The candidate that was probably meant, if any is near."""
    import difflib  # only a mistake needs it

    if len(word) > values.NAME_MAX:
        return None
    return next(iter(difflib.get_close_matches(word, candidates, n=1)), None)
