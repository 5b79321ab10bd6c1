"""Verdicts over HTTP as controllers ask for them: flat, by status, by POST with anything in it, stateless."""

import pytest
from msgspec import structs

from modelkeep.core.judgement import Judgement, Verdict
from modelkeep.core.rollout import RolloutState
from modelkeep.service.act import SYSTEM_CONTEXT, Act
from modelkeep.service.house import House
from modelkeep.store import rollout as store
from tests.web.asks import V1
from tests.web.inprocess import InProcess
from tests.web.world import World, fill

pytestmark = pytest.mark.req("S7", "U4")

BAD = {"candidate": {"count": 200, "failed": 20}, "stable": {"count": 1800, "failed": 18}}
GOOD = {"candidate": {"count": 200, "failed": 2}, "stable": {"count": 1800, "failed": 18}}


def put(house: House, world: World, verdict: Verdict) -> str:
    """Have the rollout of `own` in a step with this verdict; its id."""

    def job(act: Act) -> str:
        found = store.get_rollout(act.tx, world.rollouts["own"])
        assert found is not None
        said = Judgement(verdict=verdict, why="because", p_value=0.004)
        store.save_rollout(act.tx, structs.replace(found, state=RolloutState.STEPPING, judgement=said))
        return found.id

    return house.desk.do(SYSTEM_CONTEXT, job)


@pytest.mark.parametrize(
    ("verdict", "promotion", "rollback"),
    [(Verdict.ADVANCE, 200, 409), (Verdict.HOLD, 409, 409), (Verdict.ROLLBACK, 403, 200)],
)
def test_a_controller_gets_its_answer(
    house: House, client: InProcess, verdict: Verdict, promotion: int, rollback: int
) -> None:
    """Plain it is 200 with the word; each gate answers by the status; Flagger's POST gets the same."""
    world = fill(house)
    rollout = put(house, world, verdict)
    for path in (f"{V1}/rollouts/{rollout}/verdict", f"{V1}/endpoints/own-live/rollout/verdict"):
        reply = client("GET", path)
        assert reply.status == 200
        assert {"verdict": verdict, "why": "because", "p_value": 0.004}.items() <= reply.json().items()
        assert client("GET", path, query={"gate": "promotion"}).status == promotion
        assert client("GET", path, query={"gate": "rollback"}).status == rollback
    path = f"{V1}/endpoints/own-live/rollout/verdict"
    for raw in (b"", b'{"name": "churn", "phase": "Progressing"}', b"\xff not JSON"):
        assert client("POST", path, raw=raw, query={"gate": "promotion"}).status == promotion
        assert client("POST", path, raw=raw).json()["verdict"] == verdict
    assert client("GET", path, query={"gate": "sideways"}).status == 400


def test_foreign_counts_are_judged_and_forgotten(house: House, client: InProcess) -> None:
    """A pipeline's own counts, with a plan of its own; nothing is written."""
    before = house.desk.read(SYSTEM_CONTEXT, lambda act: act.tx.events.head())
    found = client("POST", f"{V1}/verdicts", {"ticks": [BAD] * 5}).json()
    assert (found["verdict"], found["blamed"], found["unit"]) == ("rollback", "errors", "request")
    assert found["p_value"] <= found["alpha"] == 0.01
    assert client("POST", f"{V1}/verdicts", {"ticks": [GOOD] * 60}).json()["verdict"] == "advance"
    lax = {"ticks": [BAD], "plan": {"margin": 20, "pass_odds": 40}}
    assert client("POST", f"{V1}/verdicts", lax).json()["verdict"] != "rollback"
    assert client("POST", f"{V1}/verdicts", {"ticks": [BAD] * 5}, query={"gate": "promotion"}).status == 403
    assert house.desk.read(SYSTEM_CONTEXT, lambda act: act.tx.events.head()) == before


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "MALFORMED_BODY"),
        ({"ticks": [{"candidate": {}, "stable": {}, "weight": 1}]}, 400, "MALFORMED_BODY"),
        ({"ticks": [{"candidate": {"count": -1}, "stable": {}}]}, 400, "MALFORMED_BODY"),
        ({"ticks": [{"candidate": {"count": 10**9}, "stable": {}}]}, 400, "MALFORMED_BODY"),
        ({"ticks": [{"candidate": {"failed": 1}, "stable": {}}]}, 422, "INVALID_INPUT"),
        ({"ticks": [{"candidate": {}, "stable": {}}], "unit": "caller"}, 422, "INVALID_INPUT"),
        ({"ticks": [], "plan": {"alpha": 2}}, 400, "INVALID_PLAN"),
        ({"ticks": [], "unit": "cohort"}, 400, "MALFORMED_BODY"),
    ],
)
def test_counts_that_cannot_be_are_told(client: InProcess, body: object, status: int, code: str) -> None:
    """Each with the place, and nothing computed."""
    reply = client("POST", f"{V1}/verdicts", body)
    assert (reply.status, reply.code) == (status, code)
