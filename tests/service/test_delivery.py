"""Deployment figures from a real log: rollouts that went well and badly, promotions without an endpoint,
other people's models, and models under another name."""

from datetime import timedelta

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.delivery import DeliveryReport
from modelkeep.core.rollout import RolloutState
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service import delivery, renaming
from modelkeep.service.act import Act
from modelkeep.store import delivery as store
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN
from tests.service.rollout_world import FakeGateway, RolloutWorld

pytestmark = pytest.mark.req("S10")


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0", "1.3.0")
    return made


def told(world: RolloutWorld, who: str = "owner", **asked: object) -> DeliveryReport:
    """The report that somebody gets."""
    return world.read(who, delivery.report, **asked)


def worse(world: RolloutWorld, gateway: FakeGateway, semver: str) -> None:
    """A rollout of a version that fails, until it was taken back."""
    gateway.failing[world.key(semver)] = 50
    world.promote(semver, by="owner")
    world.until(RolloutState.ROLLED_BACK, gateway)


def test_a_life_of_deployments(world: RolloutWorld) -> None:
    """One at once, one for the endpoint, one that goes well and is taken back later, one that is taken back,
    one that cannot be loaded, one that goes on."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    done = world.until(RolloutState.SUCCEEDED, gateway)
    assert done.finished_at is not None
    worse(world, gateway, "1.2.0")
    bad = world.latest()
    world.turn(gateway)
    gateway.broken[world.key("1.3.0")] = "no such operator"
    world.promote("1.3.0", by="owner")
    world.until(RolloutState.FAILED, gateway)
    world.later(hours=1)
    world.rollback(by="owner")
    back = world.now

    found = told(world)
    assert (found.deployments, found.succeeded, found.rolled_back, found.failed) == (5, 3, 1, 1)
    assert (found.success.count, found.success.of) == (3, 5)
    assert (found.change_failure.count, found.change_failure.of) == (2, 4)
    assert found.deploy.count == 2
    assert found.deploy.longest_s == (done.finished_at - done.started_at).total_seconds()
    assert found.rollback.count == 1
    assert found.recovery.count == 2
    assert found.recovery.longest_s == pytest.approx((back - done.finished_at).total_seconds(), abs=1)
    assert found.lead.count == 2
    assert bad.finished_at is not None
    assert found.under_way == 0


def test_endpoints_behind_an_alias_are_counted(world: RolloutWorld) -> None:
    """Beside production, or alone: a rollout that succeeded and was taken back later, also in a span that
    began after it; and one that was taken back at once."""
    point = world.house.catalog.set_alias
    world.do("owner", point, CHURN, "champion", parse_ref("churn:1.0.0"))
    world.made(alias="champion")
    gateway = FakeGateway(world)
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    world.do("owner", point, CHURN, "champion", parse_ref("churn:1.1.0"))
    done = world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    after = world.now
    world.later(hours=1)
    world.do("owner", world.promotions.rollback, CHURN, "errors", alias="champion")
    world.turn(gateway)
    gateway.failing[world.key("1.2.0")] = 50
    world.do("owner", point, CHURN, "champion", parse_ref("churn:1.2.0"))
    world.until(RolloutState.ROLLED_BACK, gateway)
    world.promote("1.3.0", by="owner")
    world.do("owner", point, CHURN, "free", parse_ref("churn:1.3.0"))

    both = told(world)
    assert (both.stage, both.aliases) == ("production", ("champion",))
    assert (both.deployments, both.succeeded, both.rolled_back) == (4, 3, 1)
    behind = told(world, alias="champion")
    assert (behind.stage, behind.aliases, behind.deployments) == (None, ("champion",), 3)
    assert (behind.change_failure.count, behind.change_failure.of) == (2, 3)
    assert behind.lead.count == 2
    assert done.finished_at is not None
    late = told(world, alias="champion", since=after)
    assert (late.deployments, late.recovery.count) == (1, 2)
    assert late.recovery.longest_s == pytest.approx(3_600, abs=5)
    assert told(world, stage="production").deployments == 1
    assert told(world, alias="free").deployments == 0
    with pytest.raises(errors.Invalid, match="not for both"):
        told(world, alias="champion", stage="production")


def test_what_began_before_the_span_is_whole_within_it(world: RolloutWorld) -> None:
    """A span that begins in the middle of a rollout still knows how long it took, and since when the version
    was there; what ended before is not in it."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    started = world.latest().started_at
    for _ in range(6):
        world.turn(gateway, seconds=5)
    middle = world.now
    done = world.until(RolloutState.SUCCEEDED, gateway)
    assert done.finished_at is not None
    assert done.finished_at > middle
    found = told(world, since=middle)
    assert (found.deployments, found.deploy.count, found.lead.count) == (1, 1, 1)
    assert found.deploy.mean_s == (done.finished_at - started).total_seconds()
    assert told(world, until=middle, since=middle - timedelta(days=1)).under_way == 1
    assert told(world, since=world.now).deployments == 0


def test_a_renamed_model_keeps_its_figures(world: RolloutWorld) -> None:
    """Asked for under its new name, it has what it did under the old one; the old name is nobody's."""
    gateway = world.serving()
    worse(world, gateway, "1.1.0")
    world.turn(gateway)
    before = told(world, model=CHURN)
    world.do("owner", renaming.rename, world.house.access, CHURN, "churn-eu")
    after = told(world, model=ModelName("default", "churn-eu"))
    assert (after.deployments, after.lead, after.change_failure) == (
        before.deployments,
        before.lead,
        before.change_failure,
    )
    assert after.lead.count == 1
    assert told(world).deployments == before.deployments
    with pytest.raises(errors.ModelNotFound):
        told(world, model=CHURN)


def test_figures_are_of_what_one_may_read(world: RolloutWorld) -> None:
    """Another project's deployments are not in anybody's figures but its readers', and its models are not
    there."""
    other = ModelName("other", "spam")
    world.versions("1.0.0", model=other)
    world.promote("1.0.0", by="owner")
    world.do(
        "owner",
        world.promotions.promote,
        parse_ref("other/spam:1.0.0"),
        "production",
        "ok",
        files_verified=True,
    )
    world.person("guest", Role.VIEWER, project="other")
    assert told(world).deployments == 2
    assert told(world, project="other").deployments == 1
    assert told(world, "guest").deployments == 1
    assert told(world, "guest", model=other).deployments == 1
    assert told(world, "guest", project="default").deployments == 0
    with pytest.raises(errors.ModelNotFound):
        told(world, "guest", model=CHURN)


def test_a_span_that_cannot_be_is_refused(world: RolloutWorld) -> None:
    """It begins before it ends, and names a model or a project."""
    with pytest.raises(errors.Invalid, match="begins"):
        told(world, since=world.now + timedelta(days=1))
    with pytest.raises(errors.Invalid, match="not for both"):
        told(world, model=CHURN, project="default")
    with pytest.raises(errors.InvalidName):
        told(world, stage="no stage")


def test_too_much_for_one_report_is_said(world: RolloutWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than leaving some of it out."""
    monkeypatch.setattr(store, "EVENTS_MAX", 2)
    world.serving()
    with pytest.raises(errors.LimitExceeded, match="shorter"):
        told(world)


def test_the_log_is_found_by_its_indexes(sqlite_database: Database) -> None:
    """No statement walks the whole log."""
    world = RolloutWorld(sqlite_database)

    def plans(act: Act) -> str:
        within = {"kinds": ["stage.moved"], "after": 0, "until": 9, "limit": 1}
        subjects = {"subjects": ["endpoint/churn"], "kinds": ["stage.moved"], "until": 9, "limit": 1}
        return "\n".join(
            (
                act.tx.explain(store._WITHIN, **within),
                act.tx.explain(store._OF_MODELS, names=["churn"], **within),
                act.tx.explain(store._OF_SUBJECTS, **subjects),
            )
        )

    found = world.read("owner", plans)
    assert "SCAN events" not in found
    assert found.count("SEARCH events USING INDEX") == 3
