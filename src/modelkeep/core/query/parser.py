"""Text to tree: the grammar, by recursive descent over the tokens, and the checks that need the table of
fields.

    filter    = or
    or        = and { "or" and }
    and       = not { "and" not }
    not       = "not" not | "(" or ")" | condition
    condition = subject ( sign value | [ "not" ] ( "like" | "ilike" ) pattern | [ "not" ] "in" list
                        | [ "not" ] "in" "range" range | [ "not" ] "exists" | "is" [ "not" ] "null" )
    subject   = field | ( "metrics" | "params" | "tags" ) "." key
    order     = subject [ "asc" | "desc" ] { "," subject [ "asc" | "desc" ] }

One token ahead decides each step, so the time is linear. It evaluates nothing.
"""

from datetime import datetime
from typing import Any

from modelkeep.core import codec, errors, semver, values
from modelkeep.core.query.tokens import (
    INT64,
    KEYWORDS,
    Token,
    TokenKind,
    error_at,
    nearest,
    place_details,
    shown,
    tokenize,
)
from modelkeep.core.query.tree import (
    CLAUSES_MAX,
    DEPTH_MAX,
    FIELDS,
    FILTER_MAX_BYTES,
    KIND_WORDS,
    KINDS,
    LIKES,
    LIST_MAX,
    LISTS,
    NEGATED,
    OPERATORS,
    ORDER_MAX,
    PATTERN_MAX,
    RANGES,
    SAME,
    SIGNS,
    SYNONYMS,
    And,
    Comparison,
    Exists,
    Expression,
    Kind,
    Literal,
    Not,
    Operator,
    Or,
    Order,
    Subject,
    Target,
    ValueType,
)


def parse(text: str, target: Target) -> Expression:
    """Read a filter.

    Args:
        target: decides which fields there are.

    Raises:
        InvalidFilter: it cannot be read, names a field that is not there, or compares unlike things. The
            details carry `filter`, `position` (characters before the place), `caret` (two lines to print: the
            filter, and a caret under the place); for an unknown field also `fields` (those there are) and,
            where one is near, `suggestion`.
        LimitExceeded: too long, too many conditions or values, or nested too deep; with `limit`, and, unless
            the filter is too long to be shown, the same details.
    """
    return _Parser(text, target).filter()


def parse_order(text: str, target: Target) -> tuple[Order, ...]:
    """Read an order: subjects with `asc` (the default) or `desc`, separated by commas.

    Raises:
        InvalidFilter: it cannot be read, names a subject twice, or one that can have several values; the
            details are those of `parse`.
        LimitExceeded: too long, or too many terms.
    """
    return _Parser(text, target).order()


_EXPECTED = {
    ValueType.TEXT: 'text in quotes, such as "risk"',
    ValueType.SEMVER: 'a version in quotes, such as "1.2.0"',
    ValueType.INTEGER: "a whole number, such as 7",
    ValueType.NUMBER: "a number, such as 0.9",
    ValueType.TIME: 'a time in quotes, such as "2026-01-25" or "2026-01-25T14:03Z"',
    ValueType.FREE: "text in quotes, a number, true or false",
}


class _Parser:
    """Recursive descent over the tokens, one token ahead; `depth` bounds the recursion."""

    def __init__(self, text: str, target: Target) -> None:
        if len(text) > FILTER_MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > FILTER_MAX_BYTES:
            raise errors.LimitExceeded(
                f"A filter or order has at most {FILTER_MAX_BYTES:,} bytes; shorten it or search twice.",
                limit=FILTER_MAX_BYTES,
            )
        self._text = text
        self._target = target
        self._tokens = tokenize(text)
        self._next = 0
        self._clauses = 0

    def filter(self) -> Expression:
        if len(self._tokens) == 1:
            raise self._problem(self._now, "The filter is empty; leave it out to find everything.")
        expression = self._or(0)
        if self._now.signs(")"):
            raise self._problem(self._now, "This ')' closes nothing; remove it, or open one before it.")
        if self._now.kind is not TokenKind.END:
            raise self._problem(self._now, "The condition ends before this; write 'and' or 'or' here.")
        return expression

    def order(self) -> tuple[Order, ...]:
        terms: list[Order] = []
        while True:
            token = self._now
            subject = self._subject()
            if subject.many:
                raise self._problem(
                    token, f"{subject} can have several values, so nothing can be ordered by it."
                )
            if any(subject == term.subject for term in terms):
                raise self._problem(token, f"{subject} stands twice in the order; keep the first.")
            if len(terms) == ORDER_MAX:
                raise self._exceeded(
                    token, f"An order has at most {ORDER_MAX} terms; remove some.", ORDER_MAX
                )
            descending = self._accept("desc")
            if not descending:
                self._accept("asc")
            terms.append(Order(subject, descending))
            if self._now.kind is TokenKind.END:
                return tuple(terms)
            if not self._now.signs(","):
                raise self._problem(self._now, "Expected asc, desc, a comma or the end of the order here.")
            self._advance()

    # The grammar, from the weakest binding down.

    def _or(self, depth: int) -> Expression:
        parts = [self._and(depth)]
        while self._accept("or"):
            parts.append(self._and(depth))
        flat = [inner for part in parts for inner in (part.parts if isinstance(part, Or) else (part,))]
        return Or(tuple(flat)) if len(flat) > 1 else flat[0]

    def _and(self, depth: int) -> Expression:
        parts = [self._not(depth)]
        while self._accept("and"):
            parts.append(self._not(depth))
        flat = [inner for part in parts for inner in (part.parts if isinstance(part, And) else (part,))]
        return And(tuple(flat)) if len(flat) > 1 else flat[0]

    def _not(self, depth: int) -> Expression:
        opening = self._now
        if opening.says("not"):
            self._deeper(depth)
            return Not(self._not(depth + 1))
        if not opening.signs("("):
            return self._clause()
        self._deeper(depth)
        expression = self._or(depth + 1)
        if not self._now.signs(")"):
            raise self._problem(
                self._now,
                f"The '(' at character {opening.start + 1} is still open; write 'and', 'or' or ')' here.",
            )
        self._advance()
        return expression

    def _deeper(self, depth: int) -> None:
        token = self._advance()
        if depth == DEPTH_MAX:
            raise self._exceeded(
                token,
                f"A filter is at most {DEPTH_MAX} parentheses and nots deep; take some apart.",
                DEPTH_MAX,
            )

    def _clause(self) -> Expression:
        self._clauses += 1
        if self._clauses > CLAUSES_MAX:
            raise self._exceeded(
                self._now,
                f"A filter has at most {CLAUSES_MAX} conditions; use in (...) for many values.",
                CLAUSES_MAX,
            )
        subject = self._subject()
        if self._accept("is"):
            absent = not self._accept("not")
            if not self._accept("null"):
                raise self._problem(
                    self._now, "Only 'null' or 'not null' can follow 'is'; use = to compare values."
                )
            return Not(Exists(subject)) if absent else Exists(subject)
        negated = self._accept("not")
        if self._accept("exists"):
            return Not(Exists(subject)) if negated else Exists(subject)
        place = self._now
        operator = self._operator(subject, negated=negated)
        if operator not in OPERATORS[subject.type]:
            advice = {
                ValueType.SEMVER: 'use =, < and the like, or semver in range "1.2.x"',
                ValueType.TIME: "use <, <=, > or >=",
            }.get(subject.type, "use " + ", ".join(op for op in Operator if op in OPERATORS[subject.type]))
            raise self._problem(place, f"{subject} cannot be compared with {operator.value}; {advice}.")
        return Comparison(subject, operator, self._operand(subject, operator))

    def _operator(self, subject: Subject, *, negated: bool) -> Operator:
        token = self._now
        if token.kind is TokenKind.SIGN and token.text in SIGNS and not negated:
            self._advance()
            return SIGNS[token.text]
        for positive in (Operator.LIKE, Operator.ILIKE, Operator.IN):
            if self._accept(positive.value):
                if positive is Operator.IN and self._accept("range"):
                    positive = Operator.IN_RANGE
                return NEGATED[positive] if negated else positive
        if negated:
            raise self._problem(
                token, "Only in, like, ilike or exists can follow 'not' here; write != for unequal."
            )
        raise self._problem(
            token, f"Expected an operator after {subject}, such as =, >=, like, in or exists."
        )

    # Subjects and values: words and literals become what the tree carries.

    def _subject(self) -> Subject:
        token = self._advance()
        word = token.text.lower()
        if token.kind is not TokenKind.WORD or (token.key is None and word in KEYWORDS):
            raise self._problem(token, f"Expected a field of {self._target}, such as {self._examples()}.")
        kind = KIND_WORDS.get(word)
        if token.key is None:
            if kind is not None:
                raise self._problem(token, f"{word} alone is not a field; write {kind.value}.KEY.")
            name = SYNONYMS[self._target].get(word, word)
            if name in FIELDS and self._target in FIELDS[name].targets:
                return Subject(Kind.FIELD, name)
            raise self._unknown(token)
        if kind is None:
            raise self._unknown(token)
        if kind not in KINDS[self._target]:
            raise self._problem(
                token, f"There are no {kind.value} in a search of {self._target}; search versions."
            )
        return Subject(kind, token.key)

    def _examples(self) -> str:
        return "name, owner or tags.KEY" if self._target is Target.MODELS else "semver, stage or metrics.KEY"

    def _unknown(self, token: Token) -> errors.InvalidFilter:
        word = token.text.lower()
        if token.key is not None:
            near = nearest(word, list(KIND_WORDS)) if word not in FIELDS else None
            suggestion = str(Subject(KIND_WORDS[near], token.key)) if near else None
            kinds = " or ".join(f"{kind.value}.KEY" for kind in KINDS[self._target])
            advice = f"did you mean {suggestion}?" if suggestion else f"write {kinds}."
            return self._problem(
                token, f"{shown(word)} cannot stand before a dot; {advice}", suggestion=suggestion
            )
        if word in FIELDS:
            others = " and ".join(sorted(FIELDS[word].targets))
            return self._problem(token, f"{shown(word)} is a field of {others}; search those for it.")
        fields = [name for name, field in FIELDS.items() if self._target in field.targets]
        near = nearest(word, fields)
        if near:
            advice = f"did you mean {near}?"
        else:
            name = shown(token.text, quote=False)
            keyed = [f"{kind.value}.{name}" for kind in KINDS[self._target]]
            advice = f"write {' or '.join(keyed)} if it is one of those."
        message = f"{self._target.title()} have no field {shown(word)}; {advice}"
        return self._problem(token, message, suggestion=near, fields=fields)

    def _operand(self, subject: Subject, operator: Operator) -> Literal | tuple[Literal, ...] | semver.Range:
        token = self._now
        if operator in LISTS:
            return self._list(subject)
        if operator in LIKES or operator in RANGES:
            self._advance()
            what = "a pattern" if operator in LIKES else "a range"
            if token.kind is not TokenKind.TEXT:
                raise self._problem(token, f"Expected {what} in quotes after {operator.value}.")
            return self._range(token) if operator in RANGES else self._pattern(subject, token)
        value = self._value(subject)
        if isinstance(value, bool) and operator not in SAME:
            raise self._problem(token, f"{shown(token.text)} has no order; compare it with = or !=.")
        if operator in SAME:
            self._check_choice(subject, token, value)
        return value

    def _pattern(self, subject: Subject, token: Token) -> str:
        if len(token.pattern) > PATTERN_MAX:
            raise self._exceeded(
                token, f"A pattern has at most {PATTERN_MAX} characters; shorten it.", PATTERN_MAX
            )
        lower = subject.kind is Kind.FIELD and FIELDS[subject.name].lower
        return token.pattern.lower() if lower else token.pattern

    def _range(self, token: Token) -> semver.Range:
        try:
            return semver.parse_range(token.text)
        except errors.InvalidSemver as problem:
            raise self._problem(token, problem.message) from problem

    def _list(self, subject: Subject) -> tuple[Literal, ...]:
        if not self._now.signs("("):
            raise self._problem(self._now, 'Expected a list after in, such as ("a", "b").')
        self._advance()
        found: list[Literal] = []
        while True:
            token = self._now
            value = self._value(subject)
            self._check_choice(subject, token, value)
            if len(found) == LIST_MAX:
                raise self._exceeded(token, f"A list has at most {LIST_MAX} values; search twice.", LIST_MAX)
            if subject.type is ValueType.FREE and found and type(found[0]) is not type(value):
                raise self._problem(
                    token, "The values of one list are all texts, all numbers, or all true and false."
                )
            found.append(value)
            token = self._advance()
            if token.signs(")"):
                return tuple(found)
            if not token.signs(","):
                raise self._problem(token, "Expected a comma or ')' in the list here.")

    def _value(self, subject: Subject) -> Literal:
        token = self._advance()
        if token.kind is TokenKind.WORD and not (token.says("true") or token.says("false")):
            if token.says("null"):
                raise self._problem(
                    token, f"Nothing equals null; write {subject} is null, or {subject} exists."
                )
            source = self._source(token)[:40]
            raise self._problem(token, f'{source} is not a value; put text in quotes, like "{source}".')
        match subject.type, token.kind:
            case ValueType.TEXT, TokenKind.TEXT:
                lower = FIELDS[subject.name].lower
                return token.text.lower() if lower else token.text
            case ValueType.SEMVER, TokenKind.TEXT:
                return self._version(token)
            case ValueType.TIME, TokenKind.TEXT:
                return self._moment(token)
            case ValueType.INTEGER, TokenKind.NUMBER:
                number = token.number
                return int(number) if number == int(number) and int(number) in INT64 else number
            case ((ValueType.NUMBER | ValueType.FREE), TokenKind.NUMBER):
                return float(token.number)
            case ValueType.FREE, TokenKind.TEXT:
                return token.text
            case ValueType.FREE, TokenKind.WORD:
                return token.says("true")
            case _:
                given = shown(self._source(token), quote=token.kind is not TokenKind.TEXT)
                instead = "" if token.kind is TokenKind.END else f", not with {given}"
                raise self._problem(token, f"{subject} is compared with {_EXPECTED[subject.type]}{instead}.")

    def _version(self, token: Token) -> semver.SemVer:
        if semver.is_range(token.text):
            raise self._problem(
                token, f"{shown(token.text)} is a range of versions; write 'in range' instead of the sign."
            )
        try:
            return semver.parse(token.text)
        except errors.InvalidSemver as problem:
            raise self._problem(token, problem.message) from problem

    def _moment(self, token: Token) -> datetime:
        try:
            return codec.parse_time(token.text)
        except errors.InvalidTime as problem:
            raise self._problem(token, problem.message) from problem

    def _check_choice(self, subject: Subject, token: Token, value: Literal) -> None:
        choices = FIELDS[subject.name].choices if subject.kind is Kind.FIELD else ()
        if choices and value not in choices:
            named = " or ".join(choices)
            raise self._problem(
                token,
                f"{subject} is never {shown(token.text)}; it is {named}.",
                suggestion=nearest(token.text.lower(), list(choices)),
            )

    # The reader's hand.

    @property
    def _now(self) -> Token:
        return self._tokens[self._next]

    def _advance(self) -> Token:
        token = self._tokens[self._next]
        if token.kind is not TokenKind.END:
            self._next += 1
        return token

    def _accept(self, word: str) -> bool:
        if not self._now.says(word):
            return False
        self._next += 1
        return True

    def _source(self, token: Token) -> str:
        return self._text[token.start : token.end]

    def _problem(self, token: Token, message: str, **details: Any) -> errors.InvalidFilter:
        return error_at(self._text, token.start, message, **details)

    def _exceeded(self, token: Token, message: str, limit: int) -> errors.LimitExceeded:
        return errors.LimitExceeded(
            values.printable(message), limit=limit, **place_details(self._text, token.start)
        )
