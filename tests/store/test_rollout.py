"""Rows of rollouts: ticks once and in one order, leases, endpoints, gateways, the table's number."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core.catalog import DEFAULT_STAGES
from modelkeep.core.observation import GatewayReport, SideCounts, Tick
from modelkeep.core.rollout import CANARY, Endpoint, Rollout, RolloutState
from modelkeep.core.routing import Epoch
from modelkeep.core.values import SYSTEM, Digest, ModelName
from modelkeep.store import models as models_store
from modelkeep.store import rollout as store
from modelkeep.store.database import ConstraintFailed, Database, Transaction
from modelkeep.store.visibility import Scopes, Visible
from tests.leases import Lease, lease_of

NOW = datetime(2026, 1, 25, 14, 3, tzinfo=UTC)
CHURN = ModelName("default", "churn")
MODEL = "mod_1"
EVERYTHING = Visible(allowed=Scopes(everything=True))
CONTENT = Digest("sha256:" + "c" * 64)


def begun(rollout_id: str = "rol_1", **changes: Any) -> Rollout:
    """A rollout in its first step."""
    fields: dict[str, Any] = {
        "id": rollout_id,
        "endpoint": "churn",
        "model": CHURN,
        "stage": "production",
        "stable": None,
        "stable_digest": None,
        "stable_semver": None,
        "candidate": 1,
        "candidate_digest": CONTENT,
        "candidate_semver": "1.0.0",
        "plan": CANARY,
        "salt": "",
        "state": RolloutState.STEPPING,
        "epoch": Epoch(1, 1),
        "started_at": NOW,
        "started_by": SYSTEM,
        "reason": "better",
    }
    return Rollout(**(fields | changes))


def endpoint(name: str = "churn", **changes: Any) -> Endpoint:
    """An endpoint on churn's production."""
    fields: dict[str, Any] = {
        "id": f"end_{name}",
        "name": name,
        "model": CHURN,
        "stage": "production",
        "created_at": NOW,
        "created_by": "ann",
    }
    return Endpoint(**(fields | changes))


def tick(number: int, rollout: str | None = "rol_1", **changes: Any) -> Tick:
    """A tick of a rollout."""
    fields: dict[str, Any] = {
        "endpoint": "churn",
        "rollout": rollout,
        "epoch": Epoch(1, 1),
        "number": number,
        "started_at": NOW,
        "ended_at": NOW,
        "candidate_ppm": 100_000,
        "stable": SideCounts(requests=number),
        "candidate": SideCounts(),
    }
    return Tick(**(fields | changes))


@pytest.fixture
def filled(database: Database) -> Database:
    """A database with the model and one endpoint of it."""
    write(database, _fill)
    return database


def _fill(tx: Transaction) -> None:
    models_store.add_model(
        tx, MODEL, CHURN, description="", owner="ann", stages=DEFAULT_STAGES, now=NOW, by="ann"
    )
    store.add_endpoint(tx, endpoint(), MODEL)


def write(database: Database, job: Any) -> Any:
    """Do something and wait for it."""
    return database.write(job).result(30)


def numbers(database: Database, rollout: str = "rol_1") -> list[int]:
    """The ticks of a rollout in the order of their arrival."""
    return database.read(lambda tx: [one.number for one in store.ticks_of(tx, rollout)])


@pytest.mark.req("S7")
def test_arrival_is_a_total_order_whatever_the_clocks_say(filled: Database) -> None:
    """Reports of one moment, and of a moment before, stand behind those that were taken in already; a cursor
    never misses one."""
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))
    arrivals: list[tuple[str, int]] = []
    current = begun()
    for gateway, first, at in (("b", 1, NOW), ("a", 7, NOW), ("b", 4, NOW - timedelta(hours=1))):
        ticks = [tick(first + place) for place in range(3)]
        assert write(filled, lambda tx, g=gateway, t=ticks, a=at: store.add_ticks(tx, g, t, a)) == 3
        found = filled.read(lambda tx: store.new_ticks(tx, current))  # noqa: B023
        assert [one.tick for one in found] == ticks
        arrivals += [(gateway, one.tick.number) for one in found]
        current = structs.replace(current, ticks_until=found[-1].at)
    assert numbers(filled) == [number for _, number in arrivals] == [1, 2, 3, 7, 8, 9, 4, 5, 6]
    again = [tick(2), tick(5), tick(10)]
    assert write(filled, lambda tx: store.add_ticks(tx, "b", again, NOW)) == 1
    assert [one.tick.number for one in filled.read(lambda tx: store.new_ticks(tx, current))] == [10]
    assert write(filled, lambda tx: store.add_ticks(tx, "a", [tick(2)], NOW)) == 1, "each gateway has its own"


def test_only_evidence_of_an_unfinished_rollout_is_stored(filled: Database) -> None:
    """The rest would only grow."""
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))
    strange = [tick(1, None), tick(2, "rol_none"), tick(3, candidate_ppm=0), tick(4, endpoint="other")]
    assert write(filled, lambda tx: store.add_ticks(tx, "a", strange, NOW)) == 0
    mixed = [tick(5), tick(6, None), tick(7)]
    assert write(filled, lambda tx: store.add_ticks(tx, "a", mixed, NOW)) == 2
    write(filled, lambda tx: store.save_rollout(tx, begun(state=RolloutState.FAILED, finished_at=NOW)))
    assert write(filled, lambda tx: store.add_ticks(tx, "a", [tick(8)], NOW)) == 0
    assert numbers(filled) == [5, 7]


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(batches=st.lists(st.lists(st.integers(0, 30), max_size=8), max_size=8))
def test_each_tick_counts_once_in_the_order_of_its_first_arrival(
    filled: Database, batches: list[list[int]]
) -> None:
    """Against a plain list, for any mixture of repeats."""
    write(filled, lambda tx: tx.run(store.rollout_ticks.delete()))
    write(filled, lambda tx: tx.run(store.rollouts.delete()))
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))
    expected: list[int] = []
    for batch in batches:
        new = write(filled, lambda tx, b=batch: store.add_ticks(tx, "a", [tick(n) for n in b], NOW))
        fresh = list(dict.fromkeys(number for number in batch if number not in expected))
        expected += fresh
        assert new == len(fresh)
    assert numbers(filled) == expected


def test_many_ticks_are_read_in_pieces(filled: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look takes in a bounded number and the next goes on; an explanation sees them all."""
    monkeypatch.setattr(store, "TICKS_A_LOOK_MAX", 7)
    monkeypatch.setattr(store, "TICKS_A_READ", 4)
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))
    write(filled, lambda tx: store.add_ticks(tx, "a", [tick(n) for n in range(20)], NOW))
    assert numbers(filled) == list(range(20))
    current, taken = begun(), []
    while found := filled.read(lambda tx: store.new_ticks(tx, current)):  # noqa: B023
        assert len(found) <= 7
        taken += [one.tick.number for one in found]
        current = structs.replace(current, ticks_until=found[-1].at)
    assert taken == list(range(20))


def test_one_unfinished_rollout_of_an_endpoint(filled: Database) -> None:
    """The database itself refuses a second."""
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))
    with pytest.raises(ConstraintFailed):
        write(filled, lambda tx: store.add_rollout(tx, begun("rol_2"), MODEL))
    write(filled, lambda tx: store.save_rollout(tx, begun(state=RolloutState.SUCCEEDED, finished_at=NOW)))
    write(filled, lambda tx: store.add_rollout(tx, begun("rol_2"), MODEL))
    assert filled.read(store.active_rollouts) == ["rol_2"]
    assert filled.read(lambda tx: store.active_rollouts(tx, after="rol_2")) == []
    assert filled.read(lambda tx: store.get_rollout(tx, "rol_2")) == begun("rol_2")


@pytest.mark.req("I9")
def test_a_lease_is_held_renewed_taken_over_and_let_go(filled: Database) -> None:
    """Its term rises with each new owner and only then."""
    write(filled, lambda tx: store.add_rollout(tx, begun(), MODEL))

    def claim(owner: str, at_s: float) -> bool:
        now = NOW + timedelta(seconds=at_s)
        until = now + timedelta(seconds=5)
        return bool(write(filled, lambda tx: store.claim(tx, "rol_1", owner, now, until)))

    def lease() -> Lease:
        return filled.read(lambda tx: lease_of(tx, "rol_1"))

    assert lease() == Lease(None, None, 0)
    assert claim("a", 0)
    assert claim("a", 3)
    assert not claim("b", 5)
    assert lease() == Lease("a", NOW + timedelta(seconds=8), 1)
    assert claim("b", 8.001)
    assert not claim("a", 9)
    assert lease().term == 2
    write(filled, lambda tx: store.release(tx, "a"))
    assert not claim("a", 9)
    write(filled, lambda tx: store.release(tx, "b"))
    assert claim("a", 9)
    assert lease().term == 3
    write(filled, lambda tx: store.save_rollout(tx, begun(state=RolloutState.FAILED, finished_at=NOW)))
    assert not claim("a", 10), "there is nothing left to look after"


def test_endpoints_come_back_as_they_were_stored(filled: Database) -> None:
    """Whole, by name, by stage, and only those that may be seen."""
    one = endpoint(stable=3, previous=2, epoch=Epoch(5, 2), key_header="x-id", slow_ms=12.5, rollout="rol_1")
    write(filled, lambda tx: store.save_endpoint(tx, one, NOW))
    write(filled, lambda tx: store.add_endpoint(tx, endpoint("b", stage="staging"), MODEL))
    assert filled.read(lambda tx: store.get_endpoint(tx, "churn")) == one
    assert filled.read(lambda tx: store.get_endpoint(tx, "nowhere")) is None
    assert filled.read(lambda tx: store.endpoints_of(tx, MODEL, "production")) == [one]
    names = [e.name for e in filled.read(lambda tx: store.all_endpoints(tx, "", 10))]
    assert names == ["b", "churn"]
    assert filled.read(lambda tx: store.all_endpoints(tx, "b", 10)) == [one]
    assert filled.read(lambda tx: store.list_endpoints(tx, EVERYTHING, "", 1))[0].name == "b"
    elsewhere = Visible(allowed=Scopes(projects=frozenset({"elsewhere"})))
    assert filled.read(lambda tx: store.list_endpoints(tx, elsewhere, "", 10)) == []
    with pytest.raises(ConstraintFailed):
        write(filled, lambda tx: store.add_endpoint(tx, endpoint(), MODEL))


def test_rollouts_outlive_their_endpoint_and_are_listed_newest_first(filled: Database) -> None:
    """By endpoint, by model, or all; a page begins before an id."""
    for place in range(4):
        done = begun(f"rol_{place}", state=RolloutState.SUCCEEDED, finished_at=NOW)
        write(filled, lambda tx, d=done: store.add_rollout(tx, d, MODEL))
    write(filled, lambda tx: store.drop_endpoint(tx, "churn"))

    def ids(before: str = store.FIRST, limit: int = 10, **which: str) -> list[str]:
        found = filled.read(lambda tx: store.list_rollouts(tx, EVERYTHING, before, limit, **which))
        return [one.id for one in found]

    assert ids() == ids(endpoint="churn") == ids(model=MODEL) == ["rol_3", "rol_2", "rol_1", "rol_0"]
    assert ids(before="rol_2", limit=1) == ["rol_1"]
    assert ids(endpoint="other") == ids(model="mod_2") == []


def test_gateways_are_kept_by_name_and_forgotten_when_long_gone(filled: Database) -> None:
    """The last report counts; who is silent is not listed among those that answer."""

    def put(name: str, table: int, at_s: float) -> None:
        report = GatewayReport(gateway=name, table=table, url="", sent_at=NOW)
        write(filled, lambda tx: store.put_gateway(tx, report, NOW + timedelta(seconds=at_s)))

    put("a", 1, 0)
    put("b", 1, 5)
    put("a", 2, 20)
    everybody = filled.read(store.list_gateways)
    assert [(one.report.gateway, one.report.table) for one in everybody] == [("a", 2), ("b", 1)]
    answering = filled.read(lambda tx: store.list_gateways(tx, NOW + timedelta(seconds=10)))
    assert [one.report.gateway for one in answering] == ["a"]
    assert write(filled, lambda tx: store.forget_gateways(tx, NOW + timedelta(seconds=10))) == 1
    assert len(filled.read(store.list_gateways)) == 1


def test_the_tables_number_is_kept(filled: Database) -> None:
    """0 before the first route."""
    assert filled.read(store.table_number) == 0
    for number in (7, 9):
        write(filled, lambda tx, n=number: store.set_table_number(tx, n, NOW))
        assert filled.read(store.table_number) == number


def test_hot_queries_use_their_index(sqlite_database: Database) -> None:
    """What runs for each report and each look never walks a whole table."""
    plans = sqlite_database.read(
        lambda tx: [
            tx.explain(store._TICKS, rollout="r", since="", limit=1),
            tx.explain(store._LAST_ARRIVAL, rollout="r"),
            tx.explain(store._TAKES, id="r", endpoint="e"),
            tx.explain(store._ROLLOUT, id="r"),
            tx.explain(store._GET, name="e"),
            tx.explain(store._OF_STAGE, model_id="m", stage="s"),
            tx.explain(store._ACTIVE, after="", limit=1),
        ]
    )
    for plan in plans:
        assert "SCAN" not in plan, plan
