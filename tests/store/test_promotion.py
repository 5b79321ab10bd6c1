"""Rows of stages, requests and policies: what the schema refuses, what is one indexed read, rebuilding.

What the services do with them is tested with the services; here stands what only the store can promise.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from modelkeep.core import codec
from modelkeep.core.access import Caller
from modelkeep.core.catalog import DEFAULT_STAGES, ModelVersion
from modelkeep.core.events import Event, EventKind
from modelkeep.core.policy import ALONE, TEAM, policy_digest
from modelkeep.core.promotion import (
    Approval,
    Displaced,
    Interval,
    MoveCause,
    PromotionRequest,
    RequestState,
    Seen,
    StageMove,
    Vote,
)
from modelkeep.core.values import SYSTEM, Actor, Digest, ModelName
from modelkeep.store import catalog, models, policies, requests
from modelkeep.store import promotion as store
from modelkeep.store.database import ConstraintFailed, Database, Transaction
from modelkeep.store.events import FAR
from modelkeep.store.visibility import visible_to

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")
ID = "mod_churn"
EVERYTHING = visible_to(Caller(actor=SYSTEM, owner=True))


def digest(number: int) -> Digest:
    """A digest that stands for some content."""
    return Digest(f"sha256:{number:064x}")


def fill(tx: Transaction, versions: int = 3) -> None:
    """The model churn with some versions."""
    models.add_model(tx, ID, CHURN, description="", owner="ann", stages=DEFAULT_STAGES, now=NOW, by="ann")
    for number in range(1, versions + 1):
        made = ModelVersion(
            id=f"ver_{number}",
            model=CHURN,
            number=number,
            semver=f"1.{number}.0",
            digest=digest(number),
            size_bytes=1,
            files=(),
            created_at=NOW,
            created_by="ann",
        )
        models.take_number(tx, ID, NOW)
        catalog.add_version(tx, ID, made, sequence=number)


def move(
    tx: Transaction, number: int, to: str, displaced: Displaced | None = None, after_s: int = 0
) -> Event:
    """Move a version, as the service does."""
    body = StageMove(
        from_stage="none",
        to=to,
        first=to == "none",
        semver=f"1.{number}.0",
        cause=MoveCause.PROMOTION,
        displaced=displaced,
    )
    event = tx.events.append(
        EventKind.STAGE_MOVED,
        at=NOW + timedelta(seconds=after_s),
        actor=SYSTEM,
        subject=f"churn:1.{number}.0",
        model="churn",
        number=number,
        reason="why",
        body=codec.builtins(body),
    )
    store.project(tx, ID, DEFAULT_STAGES, event)
    return event


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with churn and three versions."""
    database.write(fill).result()
    return database


@pytest.mark.req("G1")
def test_the_schema_itself_keeps_a_slot_for_one(filled: Database) -> None:
    """Whatever a service forgets, two versions cannot stand in an exclusive stage; in others they can."""
    filled.write(lambda tx: move(tx, 1, "production")).result()
    with pytest.raises(ConstraintFailed):
        filled.write(lambda tx: move(tx, 2, "production")).result()
    filled.write(lambda tx: move(tx, 2, "archived")).result()
    filled.write(lambda tx: move(tx, 3, "archived")).result()
    assert filled.read(lambda tx: store.occupant(tx, ID, "production")) == (1, "1.1.0")
    assert filled.read(lambda tx: store.occupant(tx, ID, "staging")) is None
    assert filled.read(lambda tx: store.held(tx, ID)) == {"archived": 2, "production": 1}


@pytest.mark.req("G1", "G9")
def test_a_displaced_version_changes_places_with_the_newcomer(filled: Database) -> None:
    """Both stays begin with the same event, and the former ones end with it."""
    filled.write(lambda tx: move(tx, 1, "production")).result()
    gone = Displaced(number=1, semver="1.1.0", to="archived")
    event = filled.write(lambda tx: move(tx, 2, "production", gone, after_s=9)).result()
    stays = filled.read(lambda tx: store.stays(tx, ID, None, FAR, 10))
    assert [(s.number, s.stage, s.from_sequence, s.to_sequence) for s in stays] == [
        (2, "production", event.sequence, None),
        (1, "archived", event.sequence, None),
        (1, "production", event.sequence - 1, event.sequence),
    ]
    assert stays[2].to_at == NOW + timedelta(seconds=9)
    assert filled.read(lambda tx: store.running_stay(tx, ID, 1)) == stays[1]
    assert filled.read(lambda tx: store.stays(tx, ID, "production", event.sequence, 10)) == [stays[2]]


@pytest.mark.req("G1")
def test_the_first_stage_leaves_no_rows(filled: Database) -> None:
    """Whoever goes back there stands as if it had never moved."""
    filled.write(lambda tx: move(tx, 1, "staging")).result()
    filled.write(lambda tx: move(tx, 1, "none")).result()
    assert filled.read(lambda tx: store.running_stay(tx, ID, 1)) is None
    assert filled.read(lambda tx: store.held(tx, ID)) == {}
    assert filled.read(lambda tx: catalog.get_version(tx, CHURN, 1)).stage == "none"


@pytest.mark.req("G7")
def test_former_occupants_are_each_told_once(filled: Database) -> None:
    """Their last stay, oldest first, without those that were taken back or deleted."""

    def history(tx: Transaction) -> None:
        last = None
        for number in (1, 2, 1, 3, 1):
            gone = Displaced(number=last, semver=f"1.{last}.0", to="archived") if last else None
            move(tx, number, "production", gone)
            last = number

    filled.write(history).result()
    assert [s.number for s in filled.read(lambda tx: store.former(tx, ID, "production", 10))] == [2, 3, 1]
    assert [s.number for s in filled.read(lambda tx: store.former(tx, ID, "production", 2))] == [3, 1]
    filled.write(lambda tx: catalog.set_tombstone(tx, ID, 3, "errors", NOW)).result()
    assert [s.number for s in filled.read(lambda tx: store.former(tx, ID, "production", 10))] == [2, 1]
    gone = filled.read(lambda tx: catalog.get_version(tx, CHURN, 2))
    filled.write(lambda tx: catalog.remove_version(tx, ID, gone, 99, NOW)).result()
    assert [s.number for s in filled.read(lambda tx: store.former(tx, ID, "production", 10))] == [1]
    assert filled.read(lambda tx: store.was_in(tx, ID, "production", 2))
    assert not filled.read(lambda tx: store.was_in(tx, ID, "staging", 2))


@pytest.mark.req("G9")
def test_projections_are_made_anew_from_the_events(filled: Database) -> None:
    """After whatever damage to them, nothing but the log is needed to have them again."""
    filled.write(lambda tx: move(tx, 1, "production")).result()
    gone = Displaced(number=1, semver="1.1.0", to="archived")
    filled.write(lambda tx: move(tx, 2, "production", gone)).result()
    filled.write(lambda tx: move(tx, 3, "staging")).result()
    filled.write(lambda tx: move(tx, 3, "none")).result()

    def seen(tx: Transaction) -> tuple[list[Interval], list[Any]]:
        places = tx.all(store.occupancy.select().order_by(store.occupancy.c.number))
        return store.stays(tx, ID, None, FAR, 100), places

    before = filled.read(seen)
    filled.write(
        lambda tx: (tx.run(store.occupancy.delete()), tx.run(store.stage_intervals.delete()))
    ).result()
    assert filled.read(seen) == ([], [])
    filled.write(store.rebuild).result()
    assert filled.read(seen) == before


def request(number: int = 1, **more: Any) -> PromotionRequest:
    """A request for production."""
    fields: dict[str, Any] = {
        "id": f"req_{number}",
        "model": CHURN,
        "number": number,
        "semver": f"1.{number}.0",
        "digest": digest(number),
        "to": "production",
        "reason": "better",
        "requested_by": Actor(name="ann"),
        "created_at": NOW,
        "expires_at": NOW + timedelta(days=number),
    }
    return PromotionRequest(**(fields | more))


def review(by: str, vote: Vote = Vote.APPROVE) -> Approval:
    """What somebody said."""
    seen = Seen(version=digest(1), policy=digest(2), evidence=digest(3))
    return Approval(by=Actor(name=by), vote=vote, roles=("approver",), seen=seen, at=NOW)


@pytest.mark.req("G2")
def test_a_request_comes_back_with_its_reviews_in_order(filled: Database) -> None:
    """Dismissals are seen, what changed is stored, and the open one for a move is found."""

    def job(tx: Transaction) -> None:
        requests.add_request(tx, ID, request())
        for place, said in enumerate((review("bob"), review("bob", Vote.COMMENT), review("cat")), 1):
            requests.add_review(tx, "req_1", place, said)
        requests.dismiss_review(tx, "req_1", 1, "the evidence changed")

    filled.write(job).result()
    found = filled.read(lambda tx: requests.get_request(tx, "req_1"))
    assert found is not None
    assert [(r.by.name, r.vote, r.dismissed) for r in found.reviews] == [
        ("bob", Vote.APPROVE, "the evidence changed"),
        ("bob", Vote.COMMENT, None),
        ("cat", Vote.APPROVE, None),
    ]
    assert filled.read(lambda tx: requests.open_request(tx, ID, 1, "production")) == found
    assert filled.read(lambda tx: requests.open_request(tx, ID, 1, "staging")) is None
    closed = request(state=RequestState.REJECTED, closed_at=NOW, reviews=found.reviews)
    filled.write(lambda tx: requests.save_request(tx, closed)).result()
    assert filled.read(lambda tx: requests.get_request(tx, "req_1")) == closed
    assert filled.read(lambda tx: requests.open_request(tx, ID, 1, "production")) is None
    assert filled.read(lambda tx: requests.get_request(tx, "req_2")) is None


@pytest.mark.req("G2")
def test_the_schema_lets_one_vote_of_a_person_stand(filled: Database) -> None:
    """A second vote needs the first to be dismissed; comments are free."""

    def job(tx: Transaction) -> None:
        requests.add_request(tx, ID, request())
        requests.add_review(tx, "req_1", 1, review("bob"))
        requests.add_review(tx, "req_1", 2, review("bob", Vote.COMMENT))

    filled.write(job).result()
    with pytest.raises(ConstraintFailed):
        filled.write(lambda tx: requests.add_review(tx, "req_1", 3, review("bob", Vote.REJECT))).result()
    filled.write(lambda tx: requests.dismiss_review(tx, "req_1", 1, "bob voted again")).result()
    filled.write(lambda tx: requests.add_review(tx, "req_1", 3, review("bob", Vote.REJECT))).result()


@pytest.mark.req("G2")
def test_requests_are_listed_the_latest_first_and_found_when_due(filled: Database) -> None:
    """By model and by state, after a place; due are the open ones whose time is over, the oldest first."""

    def job(tx: Transaction) -> None:
        for number in (1, 2, 3):
            requests.add_request(tx, ID, request(number))
        requests.save_request(tx, request(2, state=RequestState.WITHDRAWN, closed_at=NOW))

    filled.write(job).result()

    def listed(before: str = "~", limit: int = 9, **more: Any) -> list[str]:
        found = filled.read(lambda tx: requests.list_requests(tx, before, limit, visible=EVERYTHING, **more))
        return [one.id for one in found]

    assert listed() == ["req_3", "req_2", "req_1"]
    assert listed("req_3", 1) == ["req_2"]
    assert listed(state=RequestState.OPEN, model_id=ID) == ["req_3", "req_1"]
    assert listed(model_id="mod_other") == []
    due = filled.read(lambda tx: requests.due_requests(tx, NOW + timedelta(days=3), 9))
    assert [one.id for one in due] == ["req_1", "req_3"]
    assert filled.read(lambda tx: requests.due_requests(tx, NOW, 9)) == []


@pytest.mark.req("G3")
def test_the_newest_policy_of_each_scope_holds(filled: Database) -> None:
    """Versions are kept beside each other; a version is written once."""

    def stored(scope: str, version: int, policy: Any) -> policies.StoredPolicy:
        return policies.StoredPolicy(
            scope=scope,
            version=version,
            digest=policy_digest(policy),
            policy=policy,
            created_at=NOW,
            created_by="ann",
        )

    rows = [stored("", 1, ALONE), stored("default/churn", 1, ALONE), stored("default/churn", 2, TEAM)]
    filled.write(lambda tx: [policies.add_policy(tx, row) for row in rows]).result()
    scopes = [policies.scope_key(scope) for scope in (CHURN, "default", None)]
    assert scopes == ["default/churn", "default", ""]
    found = filled.read(lambda tx: policies.latest_policies(tx, scopes))
    assert found == {"": rows[0], "default/churn": rows[2]}
    with pytest.raises(ConstraintFailed):
        filled.write(lambda tx: policies.add_policy(tx, rows[2])).result()


@pytest.mark.req("G7", "G9")
def test_hot_questions_use_an_index(sqlite_database: Database) -> None:
    """Who is in a stage, who was at a moment, and the open request are not found by reading everything.

    On SQLite alone: Postgres reads tiny tables whole, whatever their indexes.
    """
    sqlite_database.write(fill).result()
    asked: dict[Any, dict[str, Any]] = {
        store._OCCUPANT: {"model_id": ID, "stage": "production"},
        store._IN_STAGE_AT: {"model_id": ID, "stage": "production", "sequence": 3, "limit": 2},
        store._STAYS_IN: {"model_id": ID, "stage": "production", "before": 9, "limit": 9},
        store._RUNNING: {"model_id": ID, "number": 1},
        requests._OPEN_REQUEST: {"model_id": ID, "number": 1, "stage": "production"},
        requests._DUE: {"now": "2026", "limit": 9},
        store._WAS_IN: {"model_id": ID, "stage": "production", "number": 1},
    }
    for statement, binds in asked.items():
        plan = sqlite_database.read(lambda tx, s=statement, b=binds: tx.explain(s, **b))
        assert "SCAN" not in plan, plan
