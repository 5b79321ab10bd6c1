"""Statements that are expected: they go with others, and their answers are those that asking anew gives."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import bindparam, select, update

from modelkeep.store import schema
from modelkeep.store.database import Database, Transaction
from modelkeep.store.postgres_session import Session
from modelkeep.store.statements import insert

pytestmark = pytest.mark.req("T1")

VALUES = schema.settings
PUT = insert(VALUES).on_conflict_do_update(
    index_elements=["key"], set_={"value": insert(VALUES).excluded.value}
)
GET = select(VALUES.c.value).where(VALUES.c.key == bindparam("key"))
HIGHEST = select(VALUES.c.key).order_by(VALUES.c.key.desc()).limit(1)
RENEW = update(VALUES).where(VALUES.c.key == bindparam("which")).values(value=bindparam("to"))
KEYS = ("a", "b")
WORDS = ("1", "2", "3")


def value_of(tx: Transaction, key: str) -> str | None:
    """A reading function of a store's file: it begins with its statement."""
    row = tx.one(GET, key=key)
    return row[0] if row else None


def asked_value(tx: Transaction, key: str) -> Callable[[], str | None]:
    """The same, asked ahead."""
    asked = tx.ask(GET, key=key)
    return lambda: next((row[0] for row in asked.all()), None)


def highest(tx: Transaction) -> str | None:
    """Another reading function."""
    row = tx.one(HIGHEST)
    return row[0] if row else None


def change(tx: Transaction, how: str, key: str, word: str) -> None:
    """Give a key a value, in each of the ways in which something is changed."""
    row = {"key": key, "value": word, "updated_at": ""}
    match how:
        case "put":
            tx.put(PUT, **row)
        case "run":
            tx.run(PUT, **row)
        case "many":
            tx.many(PUT, [row, row | {"key": "c"}])
        case "put_many":
            tx.put_many(PUT, [row, row | {"key": "c"}])
        case "put_columns":
            tx.put_columns(PUT, key=[key, "c"], value=[word, word], updated_at=["", ""])
        case "one":
            tx.one(PUT.returning(VALUES.c.key), **row)
        case _:
            tx.put(RENEW, which=key, to=word)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["expect", "read", "ask"]), st.sampled_from(KEYS), st.just("")),
        st.tuples(
            st.sampled_from(["put", "run", "many", "put_many", "put_columns", "one", "renew"]),
            st.sampled_from(KEYS),
            st.sampled_from(WORDS),
        ),
    ),
    max_size=12,
)


class Undone(Exception):
    """What a job that is to be undone raises."""


def lived(tx: Transaction, steps: list[tuple[str, str, str]], expecting: bool) -> list[str | None]:
    """What a job reads on its way."""
    found = []
    for what, key, word in steps:
        match what:
            case "expect":
                if expecting:
                    tx.expect(value_of, key)
            case "read":
                found.append(value_of(tx, key))
            case "ask":
                found.append(asked_value(tx, key)())
            case _:
                change(tx, what, key, word)
    return found


def check(database: Database, jobs: list[list[tuple[str, str, str]]]) -> None:
    """Jobs read the same with and without expecting anything, and every second one is undone."""

    def told(expecting: bool) -> list[list[str | None]]:
        database.write(lambda tx: [change(tx, "put", key, "0") for key in KEYS]).result(60)
        found: list[list[str | None]] = []

        def job(tx: Transaction, steps: list[tuple[str, str, str]], undo: bool) -> None:
            found.append(lived(tx, steps, expecting))
            if undo:
                raise Undone

        for place, steps in enumerate(jobs):
            future = database.write(lambda tx, s=steps, u=bool(place % 2): job(tx, s, u))  # type: ignore[misc]
            assert isinstance(future.exception(60), Undone) == bool(place % 2)
        return found

    assert told(True) == told(False)


@settings(max_examples=40)
@given(st.lists(STEPS, min_size=1, max_size=3))
def test_what_was_expected_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[list[tuple[str, str, str]]]
) -> None:
    """On SQLite, whatever is changed in between."""
    with Database.open(f"sqlite:///{tmp_path_factory.mktemp('expects') / 'store.db'}") as database:
        check(database, jobs)


@pytest.mark.parametrize("how", ["put", "run", "many", "put_many", "put_columns", "one", "renew"])
def test_a_change_has_everything_asked_anew(database: Database, how: str) -> None:
    """What was expected before a change is not believed after it, nor what an undone job had expected."""
    steps = [("expect", "a", ""), (how, "a", "1"), ("read", "a", ""), ("expect", "b", ""), ("read", "b", "")]
    check(database, [steps, [("expect", "a", ""), *steps], [("read", "a", ""), ("ask", "a", "")]])


def test_it_holds_for_the_same_arguments_alone(database: Database) -> None:
    """Another key is asked for, and the one that was expected may still be."""
    database.write(lambda tx: [change(tx, "put", key, key * 2) for key in KEYS]).result(60)

    def read(tx: Transaction) -> list[str | None]:
        tx.expect(value_of, "a")
        return [value_of(tx, "b"), value_of(tx, "a"), value_of(tx, "a")]

    assert database.read(read) == ["bb", "aa", "aa"]


def test_all_of_it_takes_one_exchange(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Postgres; and each statement is seen once."""
    database.write(lambda tx: [change(tx, "put", key, key * 2) for key in KEYS]).result(60)
    exchanges = []
    exchange = Session.exchange

    def counted(session: Session) -> None:
        exchanges.append(session)
        exchange(session)

    monkeypatch.setattr(Session, "exchange", counted)

    def read(tx: Transaction) -> list[str | None]:
        tx.expect(asked_value, "a")
        tx.expect(highest)
        return [highest(tx), asked_value(tx, "a")()]

    with database.statements() as seen:
        assert database.read(read) == ["b", "aa"]
    assert len(seen) == 2
    assert len(exchanges) == (1 if database.reads_block else 0)
