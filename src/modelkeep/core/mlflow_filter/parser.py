"""Text to clauses and terms: MLflow's grammar, one token ahead, and the checks that need the vocabulary.

    filter = { clause | "AND" }
    clause = subject ( sign value | ( "LIKE" | "ILIKE" ) text | [ "NOT" ] "IN" list | "IS" [ "NOT" ] "NULL" )
    list   = "(" text { "," text } [ "," ] ")"
    term   = subject [ "ASC" | "DESC" ]

AND is what stands between clauses, and as in MLflow it may be missing or stand twice. The words of the
grammar have any case, the names of fields only their own. There are no parentheses, no OR and no NOT. It
evaluates nothing.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from modelkeep.core import errors, values
from modelkeep.core.mlflow_filter.tokens import Token, TokenKind, tokenize
from modelkeep.core.mlflow_filter.tree import (
    CLAUSES_MAX,
    DATASET_KEYS,
    FILTER_MAX_BYTES,
    KEYED_TYPES,
    LIKES,
    LIST_MAX,
    LISTS,
    NULLS,
    ORDER_MAX,
    PATTERN_MAX,
    VOCABULARIES,
    Attribute,
    Clause,
    Filter,
    Kind,
    Noun,
    Operator,
    Order,
    OrderField,
    Value,
    ValueType,
)
from modelkeep.core.query.tokens import INT64, error_at, nearest, place_details, shown

__all__ = ["parse", "parse_fields", "parse_order"]

_SIGNS = {sign: Operator(sign) for sign in ("=", "!=", "<", "<=", ">", ">=")}
_OTHER_SIGNS = {"==": "=", "<>": "!=", "=>": ">=", "=<": "<="}
_QUOTED_IN_LISTS = {"\\\\": "\\", "\\'": "'", '\\"': '"'}
_NOT_KEYWORDS = ("OR", "NOT", "BETWEEN")


def parse(text: str, noun: Noun) -> Filter:
    """Read a filter; an empty one has no clauses.

    Raises:
        InvalidFilter: it cannot be read, names a field that is not there, or compares unlike things. The
            details carry `filter`, `position` (characters before the place) and `caret` (two lines to print);
            for a misspelled field also `suggestion`.
        LimitExceeded: too long, too many clauses or values; with `limit`.
    """
    reader = _Reader(text, noun)
    clauses: list[Clause] = []
    while reader.now.kind is not TokenKind.END:
        if reader.accept("AND"):
            continue
        if len(clauses) == CLAUSES_MAX:
            raise reader.exceeded(f"A filter has at most {CLAUSES_MAX} conditions.", CLAUSES_MAX)
        clauses.append(reader.clause())
    return tuple(clauses)


def parse_order(texts: Sequence[str], noun: Noun) -> tuple[Order, ...]:
    """Read the terms of an order, each a text of its own, such as `metrics.auc DESC`.

    Raises:
        InvalidFilter: a term cannot be read, or is nothing that can be ordered by, or stands twice.
        LimitExceeded: too long, or too many terms.
    """
    return _terms(texts, noun, lambda text: _Reader(text, noun).term())


def parse_fields(fields: Sequence[OrderField]) -> tuple[Order, ...]:
    """Read the terms of an order of logged models, whose parts come one by one.

    Everything after `metrics.` is the key, quotes and all.

    Raises:
        InvalidFilter: a term is nothing that logged models can be ordered by.
        LimitExceeded: too long, or too many terms.
    """
    return _terms(fields, Noun.LOGGED_MODELS, _field)


def _field(field: OrderField) -> Order:
    reader = _Reader(field.field_name, Noun.LOGGED_MODELS, tokens=False)
    vocabulary = VOCABULARIES[Noun.LOGGED_MODELS]
    head, dot, key = field.field_name.partition(".")
    if dot and vocabulary.order_prefixes.get(head) is Kind.METRIC:
        name, digest = field.dataset_name or None, field.dataset_digest or None
        return Order(Kind.METRIC, key, not field.ascending, name, digest)
    attribute = vocabulary.ordered.get(field.field_name)
    if attribute is None:
        raise reader.unordered(field.field_name, 0)
    return Order(Kind.ATTRIBUTE, attribute, not field.ascending)


T = TypeVar("T")


def _terms(texts: Sequence[T], noun: Noun, read: Callable[[T], Order]) -> tuple[Order, ...]:
    if len(texts) > ORDER_MAX:
        raise errors.LimitExceeded(f"An order has at most {ORDER_MAX} terms; remove some.", limit=ORDER_MAX)
    terms: list[Order] = []
    for text in texts:
        term = read(text)
        again = any((term.kind, term.key) == (earlier.kind, earlier.key) for earlier in terms)
        if again and not VOCABULARIES[noun].repeats:
            raise error_at(
                str(text), 0, f"The order names {_name(term.kind, term.key)} twice; keep the first."
            )
        terms.append(term)
    return tuple(terms)


def _name(kind: Kind, key: str) -> str:
    return shown(key, quote=False) if kind is Kind.ATTRIBUTE else f"{kind}.{shown(key, quote=False)}"


class _Subject:
    """What stands left of the sign."""

    def __init__(
        self, kind: Kind, key: str, attribute: Attribute | None, operators: Iterable[Operator]
    ) -> None:
        self.kind = kind
        self.key = key
        self.attribute = attribute
        self.operators = frozenset(operators)
        self.type = attribute.type if attribute is not None else KEYED_TYPES[kind]
        self.name = _name(kind, key)


class _Reader:
    """The tokens of one text, one token ahead."""

    def __init__(self, text: str, noun: Noun, *, tokens: bool = True) -> None:
        if len(text) > FILTER_MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > FILTER_MAX_BYTES:
            raise errors.LimitExceeded(
                f"A filter or order has at most {FILTER_MAX_BYTES:,} bytes; shorten it or search twice.",
                limit=FILTER_MAX_BYTES,
            )
        for place, char in enumerate(text):
            if char == "\0" or "\ud800" <= char <= "\udfff":
                raise error_at(text, place, "This character cannot be part of any stored text; remove it.")
        self._text = text
        self._noun = noun
        self._words = VOCABULARIES[noun]
        self._tokens = tokenize(text) if tokens else []
        self._next = 0

    # The grammar.

    def clause(self) -> Clause:
        subject = self._subject()
        place = self.now
        operator = self._operator(subject)
        if operator not in subject.operators:
            there = ", ".join(op for op in Operator if op in subject.operators)
            raise self._problem(place, f"{subject.name} cannot be compared with {operator}; use {there}.")
        return Clause(subject.kind, subject.key, operator, self._operand(subject, operator))

    def term(self) -> Order:
        token = self._advance()
        if token.kind is not TokenKind.NAME:
            raise self._problem(token, "Expected something to order by, such as a field or metrics.KEY.")
        head, key = token.text, token.key
        if token.quote and key is None:  # "metrics.auc" in quotes as a whole
            first, dot, rest = head.partition(".")
            head, key = (first, rest) if dot and first in self._words.order_prefixes else (head, None)
        order = self._ordered(token, head, key)
        descending = self.accept("DESC")
        if not descending:
            self.accept("ASC")
        if self.now.kind is not TokenKind.END:
            raise self._problem(self.now, "Only ASC or DESC can follow here; give each term as its own text.")
        return Order(order.kind, order.key, descending)

    def _ordered(self, token: Token, head: str, key: str | None) -> Order:
        kind = Kind.ATTRIBUTE if key is None else self._words.order_prefixes.get(head)
        if kind in self._words.order_kinds and key is not None:
            return Order(kind, key)
        name = head if key is None else key
        if kind is Kind.ATTRIBUTE and name in self._words.ordered:
            return Order(kind, self._words.ordered[name])
        raise self.unordered(head if key is None else f"{head}.{key}", token.start)

    def unordered(self, name: str, place: int) -> errors.InvalidFilter:
        """The error about something that nothing can be ordered by."""
        kinds = [f"{kind}.KEY" for kind in Kind if kind in self._words.order_kinds]
        there = ", ".join((*dict.fromkeys(self._words.ordered.values()), *kinds))
        message = f"{self._noun.capitalize()} cannot be ordered by {shown(name)}; use one of {there}."
        return error_at(self._text, place, message, suggestion=nearest(name, list(self._words.ordered)))

    # Subjects and operators.

    def _subject(self) -> _Subject:
        token = self._advance()
        if token.kind is not TokenKind.NAME:
            what = "is no condition" if token.kind is not TokenKind.SIGN else "cannot stand here"
            advice = "; MLflow's filters have no parentheses" if token.text in ("(", ")") else ""
            given = shown(self._source(token))
            raise self._problem(token, f"{given} {what}{advice}; write a field, a sign and a value.")
        for word in _NOT_KEYWORDS:
            if token.says(word):
                raise self._problem(token, f"MLflow's filters have no {word}; join conditions by AND.")
        if token.key is None:
            return self._attribute(token, token.text)
        kind = self._words.prefixes.get(token.text)
        if kind is None:
            near = nearest(token.text.lower(), list(self._words.prefixes))
            there = ", ".join(sorted(self._words.prefixes))
            advice = f"did you mean {near}?" if near else f"use one of {there}."
            message = f"{shown(token.text)} cannot stand before a dot; {advice}"
            raise self._problem(token, message, suggestion=near)
        if kind is Kind.ATTRIBUTE:
            return self._attribute(token, token.key)
        if kind is Kind.DATASET and token.key not in DATASET_KEYS:
            there = ", ".join(DATASET_KEYS)
            raise self._problem(token, f"Datasets are searched by {there}, not by {shown(token.key)}.")
        return _Subject(kind, token.key, None, self._words.keyed[kind])

    def _attribute(self, token: Token, name: str) -> _Subject:
        attribute = self._words.attributes.get(name)
        if attribute is not None:
            return _Subject(Kind.ATTRIBUTE, attribute.name, attribute, attribute.operators)
        near = nearest(name, list(self._words.attributes))
        if near is None:
            near = next(
                (word for word in self._words.attributes if word.startswith(f"{name.lower()}_")), None
            )
        fields = ", ".join(dict.fromkeys(attribute.name for attribute in self._words.attributes.values()))
        kinds = ", ".join(f"{kind}.KEY" for kind in self._words.keyed)
        advice = f"did you mean {near}?" if near else f"use one of {fields}, {kinds}."
        message = f"{self._noun.capitalize()} have no field {shown(name)}; {advice}"
        raise self._problem(token, message, suggestion=near)

    def _operator(self, subject: _Subject) -> Operator:
        token = self._advance()
        if token.kind is TokenKind.SIGN and token.text in _SIGNS:
            return _SIGNS[token.text]
        for word in (Operator.LIKE, Operator.ILIKE, Operator.IN):
            if token.says(word):
                return word
        if token.says("IS"):
            negated = self.accept("NOT")
            if self.accept("NULL"):
                return Operator.IS_NOT_NULL if negated else Operator.IS_NULL
            raise self._problem(self.now, "Only NULL or NOT NULL can follow IS; use = to compare values.")
        if token.says("NOT"):
            if self.accept("IN"):
                return Operator.NOT_IN
            raise self._problem(token, "Only IN can follow NOT; write != for unequal.")
        if token.kind is TokenKind.SIGN and token.text in _OTHER_SIGNS:
            message = f"{shown(token.text)} is no comparison here; write {_OTHER_SIGNS[token.text]}."
            raise self._problem(token, message)
        there = ", ".join(op for op in Operator if op in subject.operators)
        raise self._problem(token, f"Expected a comparison after {subject.name}: {there}.")

    # Values.

    def _operand(self, subject: _Subject, operator: Operator) -> Value:
        if operator in NULLS:
            return None
        if operator in LISTS:
            return self._list(subject)
        token = self._advance()
        if subject.type is not ValueType.TEXT:
            return self._number(subject, token)
        text = self._plain(token)
        if text is None and self._words.loose and operator not in LIKES:
            text = self._loose(token)
        if text is None:
            raise self._problem(token, f"{subject.name} is compared with text in quotes, such as 'x'.")
        if operator in LIKES and len(text) > PATTERN_MAX:
            raise self.exceeded(f"A pattern has at most {PATTERN_MAX} characters; shorten it.", PATTERN_MAX)
        self._check(subject, token, text)
        return text

    @staticmethod
    def _plain(token: Token) -> str | None:
        """Text in single or double quotes."""
        in_double = token.kind is TokenKind.NAME and token.key is None and token.quote == '"'
        return token.text if token.kind is TokenKind.TEXT or in_double else None

    def _loose(self, token: Token) -> str | None:
        """A number or a word that stands for itself."""
        match token.kind:
            case TokenKind.NUMBER:
                return self._source(token)
            case TokenKind.NAME if token.key is None and not token.quote:
                return token.text
            case _:
                return None

    def _number(self, subject: _Subject, token: Token) -> int | float:
        number: int | float
        if token.kind is TokenKind.NUMBER:
            number = token.number
        elif subject.attribute is not None and subject.attribute.quoted and _is_whole(self._plain(token)):
            number = int(token.text)
        elif self._words.loose and token.kind is TokenKind.NAME and token.text.lower() in ("inf", "infinity"):
            number = float("inf")
        else:
            raise self._problem(token, f"{subject.name} is compared with a number, such as 0.5 or -2.")
        if subject.type is ValueType.NUMBER:
            return float(number)
        if subject.attribute is not None and subject.attribute.whole_only and not _fits(number):
            raise self._problem(token, f"{subject.name} is compared with a whole number of 64 bits.")
        return number

    def _list(self, subject: _Subject) -> tuple[str, ...]:
        if not self._advance_over("("):
            raise self._problem(self.now, "Expected a list in parentheses here, such as ('a', 'b').")
        found: list[str] = []
        while not self.now.signs(")") or not found:
            token = self._advance()
            text = self._plain(token)
            if text is None:
                raise self._problem(token, "A list is made of text in quotes, such as ('a', 'b').")
            if len(found) == LIST_MAX:
                raise self.exceeded(f"A list has at most {LIST_MAX} values; search twice.", LIST_MAX)
            found.append(self._unquoted(token, text))
            self._check(subject, token, found[-1])
            if not self._advance_over(",") and not self.now.signs(")"):
                raise self._problem(self.now, "Expected a comma or ')' in the list here.")
        self._advance()
        return tuple(found)

    def _unquoted(self, token: Token, text: str) -> str:
        """The text of a list, where a backslash takes the next quote or backslash as it is."""
        parts: list[str] = []
        place = 0
        while place < len(text):
            pair = text[place : place + 2]
            if text[place] == "\\" and pair not in _QUOTED_IN_LISTS:
                raise self._problem(token, "In a list, write a backslash as two.")
            if pair == token.quote * 2:
                raise self._problem(token, f"In a list, write \\{token.quote} for a quote in the text.")
            parts.append(_QUOTED_IN_LISTS.get(pair, text[place]))
            place += 2 if pair in _QUOTED_IN_LISTS else 1
        return "".join(parts)

    def _check(self, subject: _Subject, token: Token, text: str) -> None:
        attribute = subject.attribute
        if attribute is None:
            return
        if attribute.choices and text not in attribute.choices:
            named = " or ".join(attribute.choices)
            near = nearest(text.upper(), list(attribute.choices))
            raise self._problem(
                token, f"{subject.name} is never {shown(text)}; it is {named}.", suggestion=near
            )
        if attribute.digits and not _is_whole(text):
            raise self._problem(token, f"{shown(text)} is no {subject.name}; it is a whole number in quotes.")

    # The reader's hand.

    @property
    def now(self) -> Token:
        """The token that comes next."""
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self.now
        if token.kind is not TokenKind.END:
            self._next += 1
        return token

    def accept(self, word: str) -> bool:
        """Step over this keyword, if it comes next."""
        if not self.now.says(word):
            return False
        self._next += 1
        return True

    def _advance_over(self, sign: str) -> bool:
        if not self.now.signs(sign):
            return False
        self._next += 1
        return True

    def _source(self, token: Token) -> str:
        return self._text[token.start : token.end]

    def _problem(self, token: Token, message: str, **details: Any) -> errors.InvalidFilter:
        return error_at(self._text, token.start, message, **details)

    def exceeded(self, message: str, limit: int) -> errors.LimitExceeded:
        """The error about a limit that the token which comes next exceeds."""
        place = place_details(self._text, self.now.start)
        return errors.LimitExceeded(values.printable(message), limit=limit, **place)


def _is_whole(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) < 20


def _fits(number: int | float) -> bool:
    return isinstance(number, int) and number in INT64
