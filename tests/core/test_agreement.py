"""What an endpoint follows and what it serves: every way in which they can be apart, and what mends it."""

from datetime import UTC, datetime
from itertools import product

import pytest
from msgspec import structs

from modelkeep.core.agreement import Mend, Standing, abandoned, compare
from modelkeep.core.movement import Rift
from modelkeep.core.rollout import Endpoint, Rollout, RolloutState
from modelkeep.core.routing import Epoch
from modelkeep.core.values import Actor, Digest, ModelName

NOW = datetime(2026, 5, 1, tzinfo=UTC)
ENDPOINT = Endpoint(
    id="end_1", name="churn", model=ModelName("default", "churn"), alias="champion", stable=1,
    created_at=NOW, created_by="ann",
)  # fmt: skip
ROLLOUT = Rollout(
    id="rol_1", endpoint="churn", model=ENDPOINT.model, alias="champion", stable=1, stable_digest=None,
    stable_semver="1.0.0", candidate=2, candidate_digest=Digest("sha256:" + "0" * 64),
    candidate_semver="1.1.0", plan=ENDPOINT.plan, salt="00", epoch=Epoch(1, 1), started_at=NOW,
    started_by=Actor(name="ann"), reason="",
)  # fmt: skip


def stepping(**more: object) -> Standing:
    """An endpoint in the middle of a rollout."""
    running = structs.replace(ROLLOUT, state=RolloutState.STEPPING, weight_ppm=100_000)
    return Standing(endpoint=structs.replace(ENDPOINT, rollout=running.id), rollout=running, **more)  # type: ignore[arg-type]


@pytest.mark.req("S9")
@pytest.mark.parametrize(
    ("seen", "rift", "mend"),
    [
        (Standing(endpoint=ENDPOINT, pointed=1), None, None),
        (Standing(endpoint=ENDPOINT, pointed=1, pointed_withdrawn=True), None, None),
        (Standing(endpoint=structs.replace(ENDPOINT, stable=None)), None, None),
        (stepping(pointed=1), None, None),
        (Standing(endpoint=ENDPOINT, pointed=2), Rift.APART, Mend.START),
        (Standing(endpoint=structs.replace(ENDPOINT, stable=None), pointed=2), Rift.APART, Mend.START),
        (
            Standing(endpoint=structs.replace(ENDPOINT, stable=None), pointed=2, refused=True),
            Rift.APART,
            Mend.NOTHING,
        ),
        (stepping(pointed=2), Rift.APART, Mend.WAIT),
        (stepping(pointed=3), Rift.APART, Mend.WAIT),
        (Standing(endpoint=ENDPOINT), Rift.VACANT, Mend.NOTHING),
        (Standing(endpoint=structs.replace(ENDPOINT, alias=None, stage="staging")), None, None),
        (Standing(endpoint=ENDPOINT, pointed=2, pointed_withdrawn=True), Rift.WITHDRAWN, Mend.POINT),
        (
            Standing(endpoint=ENDPOINT, pointed=2, pointed_withdrawn=True, served_withdrawn=True),
            Rift.WITHDRAWN,
            Mend.NOTHING,
        ),
        (Standing(endpoint=structs.replace(ENDPOINT, rollout="rol_1")), Rift.LOST, Mend.LET_GO),
        (Standing(endpoint=ENDPOINT, pointed=1, ahead=("g1",)), Rift.OUTRUN, Mend.OUTRANK),
        (stepping(pointed=1, ahead=("g1",)), Rift.OUTRUN, Mend.OUTRANK),
        (Standing(endpoint=ENDPOINT, pointed=1, deaf=("g1",)), Rift.DEAF, Mend.REPUBLISH),
    ],
)
def test_each_rift_has_its_mend(seen: Standing, rift: Rift | None, mend: Mend | None) -> None:
    """And what belongs together, a rollout in its course included, is no disagreement."""
    found = compare(seen)
    assert (found.rift if found else None, found.mend if found else None) == (rift, mend)


@pytest.mark.req("S8", "S9")
def test_a_rollout_under_way_is_never_ended_for_the_pointers_sake() -> None:
    """Whatever the pointer says, whoever was taken back: only a gateway with newer traffic, or an endpoint
    that does not know the rollout, can make anything but wait of it."""
    for pointed, gone, served_gone, refused in product((None, 1, 2, 3), *[(False, True)] * 3):
        found = compare(
            stepping(pointed=pointed, pointed_withdrawn=gone, served_withdrawn=served_gone, refused=refused)
        )
        assert found is None or found.mend is Mend.WAIT


@pytest.mark.req("S9")
def test_a_rollout_that_nobody_names_has_no_weight_left() -> None:
    """It ends under a new term, so that a gateway that still has it is outranked."""
    running = stepping().rollout
    assert running is not None
    done = abandoned(running, "nobody names it", NOW)
    assert (done.state, done.weight_ppm, done.epoch) == (RolloutState.CANCELLED, 0, Epoch(2, 0))
    assert done.finished_at == NOW
