"""Characters to tokens of MLflow's filters.

MLflow's server reads them with a parser for all of SQL; what of that people use is this: dotted names with
parts in quotes, text in quotes, numbers, signs, lists. Written by hand: each character is looked at a bounded
number of times. It does not know the words, nor which go together.

As in MLflow, text is what stands between its quotes: a doubled quote or a quote behind a backslash does not
end it, and stays as it was written.
"""

from enum import StrEnum

from msgspec import Struct

from modelkeep.core.query.tokens import error_at, shown

_DIGITS = frozenset("0123456789")
_SIGN_CHARACTERS = frozenset("<>=~!")
_CURLY_QUOTES = frozenset("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb")
_JOINTS = frozenset("-/:@#$\\")
"""Characters that people have in keys, and that end a name without quotes."""


class TokenKind(StrEnum):
    """What a token is; END stands once, after the last character."""

    NAME = "name"
    TEXT = "text"
    NUMBER = "number"
    SIGN = "sign"
    END = "end"


class Token(Struct, frozen=True):
    """A piece of the filter, from `start` up to `end`.

    Attributes:
        text: the sign; the number's digits; what stands between the quotes; a name's part before its first
            dot, or the whole of a name without dots.
        key: what follows a name's first dot.
        quote: the quotes that text, or a name without dots, stood in; '' where there were none.
    """

    kind: TokenKind
    start: int
    end: int
    text: str = ""
    key: str | None = None
    quote: str = ""
    number: int | float = 0

    def says(self, word: str) -> bool:
        """Whether this is that keyword, given in upper case."""
        plain = self.kind is TokenKind.NAME and self.key is None and not self.quote
        return plain and self.text.upper() == word

    def signs(self, sign: str) -> bool:
        """Whether this is that sign."""
        return self.kind is TokenKind.SIGN and self.text == sign


def tokenize(text: str) -> list[Token]:
    """All tokens, closed by an END.

    Raises:
        InvalidFilter: a character, number, text or name that cannot be one.
    """
    found: list[Token] = []
    place = 0
    while place < len(text):
        char = text[place]
        if char.isspace():
            place += 1
            continue
        token = _read(text, place, char)
        found.append(token)
        place = token.end
    found.append(Token(TokenKind.END, len(text), len(text)))
    return found


def _read(text: str, place: int, char: str) -> Token:
    if char == "'":
        content, end = _quoted(text, place)
        return Token(TokenKind.TEXT, place, end, content, quote=char)
    if char in '"`' or char.isalpha() or char == "_":
        return _read_name(text, place)
    end = _number_end(text, place)
    if end > place:
        return _read_number(text, place, end)
    if char in _SIGN_CHARACTERS:
        end = place + 1
        while end < len(text) and text[end] in _SIGN_CHARACTERS:
            end += 1
        return Token(TokenKind.SIGN, place, end, text[place:end])
    if char in "(),":
        return Token(TokenKind.SIGN, place, place + 1, char)
    raise error_at(text, place, f"{shown(char)} means nothing here{_advice(char)}.")


def _advice(char: str) -> str:
    match char:
        case ";":
            return "; a filter is one line of conditions, joined by AND"
        case _ if char in _CURLY_QUOTES:
            return "; use straight quotes, ' or \""
        case "+" | "-":
            return "; write a number like 0.5, -2 or 1e-3"
        case _:
            return "; put text in quotes, and a key with odd characters in backticks"


def _is_word_character(char: str) -> bool:
    return char.isalnum() or char == "_"


def _word_end(text: str, place: int) -> int:
    while place < len(text) and _is_word_character(text[place]):
        place += 1
    return place


def _quoted(text: str, start: int) -> tuple[str, int]:
    """What stands between the quotes that open here, and where it ends.

    A quote that is doubled, or behind a backslash, belongs to the text if a later one can end it.
    """
    quote = text[start]
    last = -1
    place = start + 1
    while place < len(text):
        if quote != "`" and text.startswith(f"\\{quote}", place):
            last = place + 1
            place += 2
        elif text[place] != quote:
            place += 1
        elif text.startswith(quote, place + 1):
            last = place
            place += 2
        else:
            return text[start + 1 : place], place + 1
    if last < 0:
        raise error_at(text, start, f"The quote that opens here is never closed; end it with {quote}.")
    return text[start + 1 : last], last + 1


def _read_name(text: str, start: int) -> Token:
    """A name, with its key where a dot follows: `metrics.a.b`, metrics.`a b`, metrics."a b"."""
    head, place, quote = _name_part(text, start)
    key: str | None = None
    if text.startswith(".", place):
        place += 1
        char = text[place : place + 1]
        if char and char in "'\"`":
            key, place = _quoted(text, place)
            if char == '"' and len(key) > 1 and key[0] == key[-1] == "`":
                key = key[1:-1]
        else:
            begin = place
            place = _dotted_end(text, place)
            key = text[begin:place]
            if not key:
                raise error_at(text, begin, f"A key follows the dot; write {shown(head, quote=False)}.KEY.")
    if text[place : place + 1] in {"'", '"', "`", "."} or (
        text[place : place + 1] in _JOINTS and text[place : place + 2] != "--"
    ):
        raise error_at(
            text,
            place,
            f"{shown(text[place])} cannot stand in a key without quotes; put the whole key in backticks.",
        )
    return Token(TokenKind.NAME, start, place, head, key=key, quote=quote)


def _name_part(text: str, place: int) -> tuple[str, int, str]:
    char = text[place]
    if char in '"`':
        content, end = _quoted(text, place)
        return content, end, char
    end = _word_end(text, place)
    return text[place:end], end, ""


def _dotted_end(text: str, place: int) -> int:
    """Where the words end that are joined by dots."""
    while True:
        end = _word_end(text, place)
        if end == place or not text.startswith(".", end) or _word_end(text, end + 1) == end + 1:
            return end
        place = end + 1


def _number_end(text: str, place: int) -> int:
    """Where the number that begins at `place` ends; `place` itself when none begins there."""
    begin = place + text.startswith("-", place)
    whole = _digits_end(text, begin)
    end = _digits_end(text, whole + 1) if text.startswith(".", whole) else whole
    if end - begin - (end > whole) <= 0:
        return place
    if end != whole + 1 and text[end : end + 1] in ("e", "E"):
        power = end + 1 + (text[end + 1 : end + 2] in ("+", "-"))
        power_end = _digits_end(text, power)
        end = power_end if power_end > power else end
    return end


def _digits_end(text: str, place: int) -> int:
    while place < len(text) and text[place] in _DIGITS:
        place += 1
    return place


def _read_number(text: str, place: int, end: int) -> Token:
    rest = end
    while rest < len(text) and (_is_word_character(text[rest]) or text[rest] == "."):
        rest += 1
    if rest > end:
        raise error_at(text, place, f"{shown(text[place:rest])} is not a number; put text in quotes.")
    piece = text[place:end]
    number = int(piece) if piece.lstrip("-").isdigit() and len(piece) < 20 else float(piece)
    return Token(TokenKind.NUMBER, place, end, piece, number=number)
