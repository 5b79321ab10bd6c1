"""Statements: built once with SQLAlchemy Core, compiled once per dialect, run as plain text on the driver.

Building and compiling a statement costs twenty times what running it costs, and what SQLAlchemy does around
each run as much as the query itself. So the tables and statements are SQLAlchemy's, which keeps them portable
and free of pasted text, and the run is the driver's. The price: no type does anything on the way, so columns
hold text, whole numbers and doubles only, and a bind that is left out is an error here instead of a default.

A statement that lives as long as its module is compiled once; one that is built for a single call (a search)
is forgotten with it. What this file does not do: open, begin or commit anything.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from sqlalchemy import ARRAY, BigInteger, Dialect, Text, bindparam
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, ClauseElement, ColumnElement

from modelkeep.core import codec

__all__ = ["Prepared", "Row", "Runs", "Statement", "Statements", "insert", "json_text", "one_of"]

SEVERAL_MAX = 1_000
"""Rows that one insert carries on Postgres: both ends hold them in memory, and more make no row cheaper."""

Row = tuple[Any, ...]
"""A row as the driver gives it: text, whole numbers, doubles and None, in the order of the selected
columns."""

Statement = ClauseElement
"""Anything SQLAlchemy Core builds that can be run: select, insert, update, delete, text."""


class Asks(Protocol):
    """A statement that was asked ahead; its rows are waited for when they are looked at."""

    def all(self) -> list[Row]: ...


class Runs(Protocol):
    """What runs statements: a transaction, for everything that is written against one."""

    def all(self, statement: Statement, /, **params: Any) -> list[Row]: ...
    def one(self, statement: Statement, /, **params: Any) -> Row | None: ...
    def run(self, statement: Statement, /, **params: Any) -> int: ...
    def put(self, statement: Statement, /, **params: Any) -> None: ...
    def many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], /) -> int: ...
    def put_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]], /) -> None: ...
    def ask(self, statement: Statement, /, **params: Any) -> "Asks": ...


def json_text(value: object) -> str:
    """A shape as the text of a JSON column; `codec.decode` reads it back."""
    return codec.encode(value).decode()


class OneOf(ColumnElement[bool]):
    """The condition that `one_of` builds; each dialect has its own way to unpack a list."""

    inherit_cache = False
    __visit_name__ = "one_of"

    def __init__(self, column: ColumnElement[Any], name: str) -> None:
        self.column = column
        kind = BigInteger() if isinstance(column.type, BigInteger) else Text()
        self.bind: BindParameter[Any] = bindparam(name, type_=ARRAY(kind))


def one_of(column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """`column in (the list bound to name)` with one text for every length of list, so that it is compiled
    once.

    Give the list itself when running: `tx.all(STATEMENT, ids=["a", "b"])`. An empty list matches nothing.
    """
    return OneOf(column, name)


@compiles(OneOf, "sqlite")
def _one_of_sqlite(element: OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    column, bind = compiler.process(element.column, **kw), compiler.process(element.bind, **kw)
    return f"{column} IN (SELECT value FROM json_each({bind}))"


@compiles(OneOf, "postgresql")
def _one_of_postgresql(element: OneOf, compiler: SQLCompiler, **kw: Any) -> str:
    column, bind = compiler.process(element.column, **kw), compiler.process(element.bind, **kw)
    # A list whose length is seen while planning would be planned for each time: that costs more than it runs.
    return f"{column} = ANY (ARRAY(SELECT unnest({bind})))"


class Prepared:
    """One statement for one dialect: its text, and how to put named values into the order of its places."""

    __slots__ = ("_compiled", "_constants", "_lists", "_names", "_pick", "_places", "several", "text")

    def __init__(self, compiled: SQLCompiler) -> None:
        places = compiled.positiontup or []
        binds = {name: bind for bind, name in compiled.bind_names.items() if name in set(places)}
        self.text = str(compiled)
        self._constants = {n: b.effective_value for n, b in binds.items() if not b.required}
        # SQLite takes a list as one JSON text, Postgres as it is.
        of_postgres = compiled.dialect.name == "postgresql"
        self._lists = tuple(n for n, b in binds.items() if isinstance(b.type, ARRAY) and not of_postgres)
        self._names = frozenset(n for n, b in binds.items() if b.required)
        self._places = tuple(places)
        self._pick = _picker(places)
        self.several = Several.of(self.text, len(places)) if of_postgres and compiled.isinsert else None
        # `column.in_([...])` has as many places as its list is long: its text is known with the values.
        self._compiled = compiled if compiled.post_compile_params else None

    def bind(self, params: Mapping[str, Any]) -> tuple[str, Sequence[Any]]:
        """The text, and the values in the order of its places.

        Raises:
            TypeError: a value is missing, or is for a name the statement does not have.
        """
        names = self._names
        if len(params) != len(names) or not names.issuperset(params):
            self._check(params)
        if self._constants:
            params = {**self._constants, **params}
        if self._lists:
            params = self._with_lists(params)
        if self._compiled is not None:
            state = self._compiled.construct_expanded_state(dict(params))
            return state.statement, state.positional_parameters
        return self.text, self._pick(params)

    def bind_all(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        """Of each row the values in the order of the statement's places. Raises as `bind` does."""
        if self._constants or self._lists or self._compiled is not None:
            return [self.bind(row)[1] for row in rows]
        wanted = len(self._names)
        try:
            places = [self._pick(row) for row in rows]
        except KeyError:
            places = []
        if len(places) != len(rows) or any(len(row) != wanted for row in rows):
            for row in rows:
                self._check(row)
        return places

    def bind_columns(self, columns: Mapping[str, Sequence[Any]]) -> Sequence[Sequence[Any]]:
        """The columns of several rows in the order of the statement's places, each of plain values. Raises as
        `bind` does, and ValueError when they are not of one length."""
        if self._names != columns.keys():
            self._check(columns)
        if len({len(column) for column in columns.values()}) > 1:
            raise ValueError(f"columns of different lengths: {self.text}")
        return [columns[name] for name in self._places]

    def _check(self, params: Mapping[str, Any]) -> None:
        missing = self._names - params.keys()
        unknown = params.keys() - self._names - self._constants.keys()
        if missing or unknown:
            raise TypeError(
                f"missing binds {sorted(missing)}, unknown binds {sorted(unknown)} in: {self.text}"
            )

    def _with_lists(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**params, **{name: json_text(params[name]) for name in self._lists}}


class Several:
    """Carries several rows in one statement: an insert of plain values, which takes a list for each column.

    A statement for each row costs Postgres five times what the row does. SQLite has no use for this.
    """

    __slots__ = ("_key", "_key_at", "text")

    _PLACE = r'\$\d+::[A-Z ]+?(?: COLLATE "C")?'
    _FORM = re.compile(
        rf"INSERT INTO (?P<table>\w+) \((?P<columns>[\w, ]+)\) VALUES \((?P<places>{_PLACE}(?:, {_PLACE})*)\)"
        r"(?P<rest>(?: ON CONFLICT (?:DO NOTHING|\((?P<key>[\w, ]+)\) DO UPDATE [^$]*))?)"
    )

    def __init__(self, found: "re.Match[str]", kinds: Sequence[str], key: Sequence[int]) -> None:
        lists = ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(kinds, 1))
        self.text = (
            f"INSERT INTO {found['table']} ({found['columns']}) SELECT * FROM unnest({lists}){found['rest']}"
        )
        self._key_at = key
        self._key = itemgetter(*key) if key else None

    @classmethod
    def of(cls, text: str, width: int) -> "Several | None":
        """For an insert of `width` plain values, each in a place of its own; None for any other statement."""
        found = cls._FORM.fullmatch(text)
        if found is None:
            return None
        places = re.findall(r"\$(\d+)::([A-Z ]+?)(?: COLLATE|,|$)", found["places"])
        columns = found["columns"].split(", ")
        key = found["key"].split(", ") if found["key"] else []
        if [place for place, _ in places] != [str(n) for n in range(1, width + 1)] or not set(key) <= {
            *columns
        }:
            return None
        return cls(found, [kind for _, kind in places], [columns.index(name) for name in key])

    def carry(self, rows: Sequence[Sequence[Any]]) -> Iterator[list[list[Any]]]:
        """What to run the text with, once or several times, to insert these rows in order.

        Rows that change the same row of the table do not go together: Postgres refuses to update one twice.
        """
        for apart in self._apart(rows):
            for start in range(0, len(apart), SEVERAL_MAX):
                yield [list(column) for column in zip(*apart[start : start + SEVERAL_MAX], strict=True)]

    def carry_columns(self, columns: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
        """The same where the rows have come as columns, which are all of one length."""
        few = len(columns[0]) <= SEVERAL_MAX
        if few and len(set(zip(*(columns[at] for at in self._key_at), strict=True))) in (0, len(columns[0])):
            yield columns
        else:
            yield from self.carry(list(zip(*columns, strict=True)))

    def _apart(self, rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
        if self._key is None or len(set(map(self._key, rows))) == len(rows):
            yield rows
            return
        seen: set[Any] = set()
        start = 0
        for place, key in enumerate(map(self._key, rows)):
            if key in seen:
                yield rows[start:place]
                seen, start = set(), place
            seen.add(key)
        yield rows[start:]


def _picker(places: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    match len(places):
        case 0:
            return lambda _: ()
        case 1:
            only = places[0]
            return lambda params: (params[only],)
        case _:
            return itemgetter(*places)


class Statements:
    """The compiled statements of one dialect, each as long as the statement itself is alive."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._known: WeakKeyDictionary[Statement, Prepared] = WeakKeyDictionary()

    def prepare(self, statement: Statement) -> Prepared:
        """Compile a statement, or find it compiled."""
        known = self._known.get(statement)
        if known is None:
            compiled = statement.compile(dialect=self._dialect)
            assert isinstance(compiled, SQLCompiler)
            known = self._known[statement] = Prepared(compiled)
        return known
