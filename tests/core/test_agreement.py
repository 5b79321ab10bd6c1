"""What an endpoint follows and what it serves: every way in which they can be apart, and what mends it."""

from datetime import UTC, datetime
from itertools import product

import pytest
from msgspec import structs

from modelkeep.core.agreement import Ahead, Mend, Standing, abandoned, compare
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


SAME = Ahead(gateway="g1", epoch=Epoch(9, 0), agrees=True)
ELSEWHERE = structs.replace(SAME, agrees=False)


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
        (Standing(endpoint=ENDPOINT, pointed=1, ahead=SAME), Rift.OUTRUN, Mend.OUTRANK),
        (Standing(endpoint=ENDPOINT, pointed=1, ahead=ELSEWHERE), Rift.OUTRUN, Mend.NOTHING),
        (
            Standing(endpoint=ENDPOINT, pointed=1, ahead=structs.replace(ELSEWHERE, served=2)),
            Rift.OUTRUN,
            Mend.TAKE_OVER,
        ),
        (stepping(pointed=1, ahead=SAME), Rift.OUTRUN, Mend.CALL_OFF),
        (stepping(pointed=1, ahead=structs.replace(SAME, taken_back=True)), Rift.OUTRUN, Mend.TAKE_BACK),
        (stepping(pointed=1, ahead=ELSEWHERE), Rift.OUTRUN, Mend.NOTHING),
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


@pytest.mark.req("S8", "S9")
def test_a_gateway_that_serves_something_else_is_never_outranked() -> None:
    """It may have taken back what the registry names: whatever else is the matter, its traffic stays."""
    standings = (
        Standing(endpoint=ENDPOINT, pointed=2),
        Standing(endpoint=structs.replace(ENDPOINT, rollout="rol_1"), pointed=2, pointed_withdrawn=True),
        Standing(endpoint=structs.replace(ENDPOINT, stable=None), pointed=2),
        stepping(pointed=2),
    )
    for seen, served, kept, gone in product(standings, (None, 3), (False, True), (False, True)):
        ahead = structs.replace(ELSEWHERE, served=served, kept=kept, taken_back=gone)
        found = compare(structs.replace(seen, ahead=ahead))
        assert found is not None
        assert found.mend is (Mend.NOTHING if served is None else Mend.TAKE_OVER)


@pytest.mark.req("S8", "S9")
def test_a_first_version_and_one_on_its_way_back_go_on_under_a_newer_term() -> None:
    """There is nobody else to serve, and nobody to get weight."""
    first = stepping(ahead=SAME)
    back = structs.replace(ROLLOUT, state=RolloutState.ROLLING_BACK)
    for seen in (
        structs.replace(first, endpoint=structs.replace(first.endpoint, stable=None)),
        structs.replace(first, rollout=back),
    ):
        found = compare(seen)
        assert found is not None
        assert found.mend is Mend.OUTRANK
