"""Endpoints and rollouts in the service: what people say, what gateways report, and what is stored of it."""

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.events import EventKind
from modelkeep.core.observation import VersionPhase
from modelkeep.core.recording import Privacy, Treatment
from modelkeep.core.rollout import RolloutState
from modelkeep.core.routing import WHOLE_PPM, Epoch, check_table
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service import labels, references
from modelkeep.service.act import Act
from modelkeep.store import events
from modelkeep.store import rollout as store
from modelkeep.store.database import Database
from tests.leases import lease_of
from tests.service.promotion_world import CHURN
from tests.service.rollout_world import NAME, PLAN, STEP_S, FakeGateway, RolloutWorld


@pytest.fixture
def world(database: Database) -> RolloutWorld:
    """Three versions of churn, nothing served."""
    made = RolloutWorld(database)
    made.versions("1.0.0", "1.1.0", "1.2.0")
    return made


# -------------------------------------------------------------------------------------------------- endpoints


@pytest.mark.req("S9")
def test_an_endpoint_on_an_occupied_stage_begins_to_serve(world: RolloutWorld) -> None:
    """Nobody has to promote again what is in production already."""
    world.promote("1.0.0", by="owner")
    made = world.made()
    assert made.rollout is not None
    assert made.stable is None
    gateway = FakeGateway(world)
    world.turn(gateway)
    world.turn(gateway)
    after = world.endpoint()
    assert (after.stable, after.rollout) == (1, None)
    assert gateway.serves() == world.key("1.0.0")
    assert world.in_production() == "1.0.0"


def test_an_endpoint_that_could_not_serve_tries_again_when_it_is_put_again(world: RolloutWorld) -> None:
    """After a failed load the same command is the way on."""
    world.promote("1.0.0", by="owner")
    world.made()
    gateway = FakeGateway(world)
    gateway.broken[world.key("1.0.0")] = "no such operator"
    world.turn(gateway)
    assert world.state() is RolloutState.FAILED
    assert "no such operator" in (world.latest().outcome or "")
    gateway.broken.clear()
    world.made()
    world.turn(gateway)
    world.turn(gateway)
    assert world.endpoint().stable == 1


def test_an_endpoint_on_an_empty_stage_waits_for_the_first_promotion(world: RolloutWorld) -> None:
    """Then the promotion starts the rollout, and the stage follows it."""
    world.made()
    gateway = FakeGateway(world)
    world.turn(gateway)
    assert gateway.live.routes == ()
    promotion = world.promote("1.0.0", by="owner")
    assert promotion.kind == "rollout"
    assert world.in_production() is None
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.in_production() == "1.0.0"


def test_settings_change_and_routes_follow(world: RolloutWorld) -> None:
    """A setting of the route gives it a new age and the table a new number; the plan alone does not."""
    gateway = world.serving()
    number, epoch = world.table_number(), world.endpoint().epoch
    world.made(plan=structs.replace(PLAN, alpha=0.02))
    assert (world.table_number(), world.endpoint().epoch) == (number, epoch)
    world.made(plan=structs.replace(PLAN, alpha=0.02), key_header="X-Customer")
    assert world.table_number() > number
    assert world.endpoint().epoch > epoch
    world.turn(gateway)
    assert gateway.route().key_header == "x-customer"
    again = world.table_number()
    world.made(plan=structs.replace(PLAN, alpha=0.02), key_header="x-customer")
    assert world.table_number() == again, "nothing changed"
    world.made(key_cookie="visitor", key_field="/customer/id")
    world.turn(gateway)
    assert (gateway.route().key_cookie, gateway.route().key_field) == ("visitor", "/customer/id")
    with pytest.raises(errors.Invalid, match="JSON pointer"):
        world.made(key_field="customer")


@pytest.mark.req("V12")
def test_a_version_on_its_way_is_taken_back_before_it_is_yanked(world: RolloutWorld) -> None:
    """Else it would enter production at the rollout's end, which no yanked version does. What serves already
    is yanked where it stands."""
    gateway = world.serving()
    rollout = world.promote("1.1.0", by="owner").rollout

    def yank(act: Act, semver: str) -> None:
        labels.yank(act, references.resolve(act, parse_ref(f"churn:{semver}")), "trained on leaked labels")

    with pytest.raises(errors.RolloutActive, match=f"rollout abort {NAME}") as refused:
        world.do("owner", yank, "1.1.0")
    assert refused.value.details["rollout"] == rollout
    world.do("owner", yank, "1.0.0")
    world.do("owner", world.rollouts.abort, NAME, "leaked labels")
    world.do("owner", yank, "1.1.0")
    world.turn(gateway)
    assert world.in_production() == "1.0.0"


@pytest.mark.req("S2")
def test_a_version_on_its_way_is_sent_nowhere_else(world: RolloutWorld) -> None:
    """Archived in the middle of its rollout, it would go on to all of the traffic and into production."""
    world.serving()
    rollout = world.promote("1.1.0", by="owner").rollout
    for stage in ("archived", "staging"):
        with pytest.raises(errors.RolloutActive, match=f"rollout abort {NAME}") as refused:
            world.promote("1.1.0", stage, by="owner")
        assert refused.value.details["rollout"] == rollout
    world.do("owner", world.rollouts.abort, NAME, "not this one")
    assert world.promote("1.1.0", "archived", by="owner").version.stage == "archived"


def test_who_a_caller_is_cannot_change_while_traffic_moves(world: RolloutWorld) -> None:
    """Another key would put callers on the other side in the middle of a comparison."""
    world.serving()
    world.promote("1.1.0", by="owner")
    for setting in (
        {"key_header": "x-customer"},
        {"key_cookie": "visitor"},
        {"key_field": "/customer"},
        {"slow_ms": 10.0},
    ):
        with pytest.raises(errors.RolloutActive):
            world.made(**setting)
    world.made(lease_s=30.0, workers=2)
    assert (world.endpoint().lease_s, world.endpoint().workers) == (30.0, 2)
    table = world.read("gate", world.rollouts.table_if_newer, -1)
    assert table is not None
    assert [route.workers for route in table.routes] == [2]
    with pytest.raises(errors.Invalid, match="workers"):
        world.made(workers=0)


@pytest.mark.req("S11")
def test_what_is_logged_goes_to_the_gateways_and_may_change_at_any_time(world: RolloutWorld) -> None:
    """Share and filter stand in the route, also of a rollout under way; what makes no sense is refused."""
    world.serving()
    world.promote("1.1.0", by="owner")
    privacy = Privacy(fields={"age": Treatment.HASH}, others=Treatment.DROP)
    world.made(log_ppm=100_000, privacy=privacy)
    assert (world.endpoint().log_ppm, world.endpoint().privacy) == (100_000, privacy)
    table = world.read("gate", world.rollouts.table_if_newer, -1)
    assert table is not None
    assert [(route.log_ppm, route.privacy) for route in table.routes] == [(100_000, privacy)]
    for wrong in (
        {"log_ppm": -1},
        {"log_ppm": 1_000_001},
        {"privacy": Privacy(fields={" ": Treatment.DROP})},
    ):
        with pytest.raises(errors.Invalid):
            world.made(**wrong)


def test_one_stage_has_one_endpoint_and_a_name_one_stage(world: RolloutWorld) -> None:
    """A promotion moves one traffic; a name does not silently change what it means."""
    world.made()
    with pytest.raises(errors.EndpointExists, match="churn already"):
        world.made("second")
    with pytest.raises(errors.EndpointExists):
        world.made(stage="staging")
    with pytest.raises(errors.InvalidTransition):
        world.made("third", stage="archived")
    with pytest.raises(errors.InvalidTransition):
        world.made("third", stage="nowhere")
    with pytest.raises(errors.InvalidName):
        world.made("no name")
    with pytest.raises(errors.Invalid, match="lease_s"):
        world.made("third", lease_s=1.0)
    with pytest.raises(errors.Invalid, match="header"):
        world.made("third", stage="staging", key_header="x y")


@pytest.mark.req("G10")
def test_who_may_not_read_a_model_does_not_learn_of_its_endpoint(world: RolloutWorld) -> None:
    """Every way to it says the same as for an endpoint that is not there."""
    world.serving()
    rollout = world.latest()
    world.person("out", Role.MAINTAINER, project="elsewhere")
    rollouts = world.rollouts
    for look in (rollouts.get_endpoint, rollouts.status):
        with pytest.raises(errors.EndpointNotFound):
            world.read("out", look, NAME)
    with pytest.raises(errors.EndpointNotFound):
        world.do("out", rollouts.delete_endpoint, NAME)
    for method in (rollouts.abort, rollouts.pause, rollouts.resume, rollouts.step):
        with pytest.raises(errors.EndpointNotFound):
            world.do("out", method, NAME, "why")
    for read in (rollouts.get_rollout, rollouts.explain):
        with pytest.raises(errors.RolloutNotFound):
            world.read("out", read, rollout.id)
    with pytest.raises(errors.EndpointNotFound):
        world.read("out", rollouts.list_rollouts, endpoint=NAME, model=None, limit=5, page_token=None)
    with pytest.raises(errors.ModelNotFound):
        world.read("out", rollouts.list_rollouts, endpoint=None, model=CHURN, limit=5, page_token=None)
    assert world.read("out", rollouts.list_endpoints, limit=5, page_token=None).items == ()
    everywhere = world.read(
        "out", rollouts.list_rollouts, endpoint=None, model=None, limit=5, page_token=None
    )
    assert everywhere.items == ()
    with pytest.raises(errors.ModelNotFound):
        world.do("out", rollouts.put_endpoint, NAME, CHURN)


@pytest.mark.req("G10")
def test_reading_is_not_operating(world: RolloutWorld) -> None:
    """A viewer sees it all and moves nothing; only gateways fetch and report."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    rollouts = world.rollouts
    assert world.read("eve", rollouts.status, NAME).active
    for method in (rollouts.abort, rollouts.pause, rollouts.resume, rollouts.step):
        with pytest.raises(errors.NotAllowed):
            world.do("eve", method, NAME, "why")
    with pytest.raises(errors.NotAllowed):
        world.do("eve", rollouts.delete_endpoint, NAME)
    for person in ("eve", "ann", "dan"):
        with pytest.raises(errors.NotAllowed):
            world.read(person, rollouts.table_if_newer, 0)
        with pytest.raises(errors.NotAllowed):
            world.do(person, rollouts.report, gateway.make_report())


def test_lists_have_pages_with_opaque_tokens(world: RolloutWorld) -> None:
    """Each once, in order, and a token of another list is refused."""
    for place in range(5):
        model = world.model(ModelName("default", f"m{place}"))
        world.do("owner", world.rollouts.put_endpoint, f"e{place}", model)
    names: list[str] = []
    token = None
    while True:
        page = world.read("owner", world.rollouts.list_endpoints, limit=2, page_token=token)
        names += [endpoint.name for endpoint in page.items]
        token = page.next_page_token
        if token is None:
            break
        with pytest.raises(errors.Invalid, match="token"):
            world.read(
                "owner", world.rollouts.list_rollouts, endpoint=None, model=None, limit=2, page_token=token
            )
    assert names == [f"e{place}" for place in range(5)]
    with pytest.raises(errors.Invalid):
        world.read("owner", world.rollouts.list_endpoints, limit=0, page_token=None)


def test_an_endpoint_is_deleted_and_its_history_stays(world: RolloutWorld) -> None:
    """Its rollouts are found by its name, and a new one of that name is not older than it was."""
    gateway = world.serving()
    before = world.endpoint()
    world.promote("1.1.0", by="owner")
    with pytest.raises(errors.RolloutActive):
        world.do("owner", world.rollouts.delete_endpoint, NAME)
    world.do("owner", world.rollouts.abort, NAME, "not now")
    number = world.table_number()
    world.do("owner", world.rollouts.delete_endpoint, NAME)
    assert world.table_number() > number
    gateway.silent = True  # it misses the time without the endpoint
    with pytest.raises(errors.EndpointNotFound):
        world.endpoint()
    page = world.read(
        "owner", world.rollouts.list_rollouts, endpoint=NAME, model=None, limit=10, page_token=None
    )
    assert [one.state for one in page.items] == [RolloutState.CANCELLED, RolloutState.SUCCEEDED]
    world.made()
    assert world.endpoint().epoch.term > before.epoch.term + 1
    gateway.silent = False
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    assert gateway.route().epoch == world.endpoint().epoch


# -------------------------------------------------------------------------------------------------- a rollout


@pytest.mark.req("S3", "S9", "G8")
def test_a_healthy_candidate_goes_through_every_step_and_the_stage_follows(world: RolloutWorld) -> None:
    """10 % -> 50 % -> 100 %, each confirmed, each at least its time; stage, event and endpoint in one act."""
    gateway = world.serving()
    promotion = world.promote("1.1.0", by="owner")
    assert promotion.kind == "rollout"
    weights = [gateway.route().candidate_ppm]
    for _ in range(60):
        world.turn(gateway)
        share = gateway.route().candidate_ppm if gateway.route().candidate else weights[-1]
        if share != weights[-1]:
            assert world.in_production() == "1.0.0", "the stage waits for the end"
            weights.append(share)
        if world.state() is RolloutState.SUCCEEDED:
            break
    assert weights == [0, 100_000, 500_000, WHOLE_PPM]
    done = world.latest()
    assert done.finished_at is not None
    assert (done.finished_at - done.started_at).total_seconds() >= 3 * STEP_S
    assert world.in_production() == "1.1.0"
    endpoint = world.endpoint()
    assert (endpoint.stable, endpoint.previous, endpoint.rollout) == (2, 1, None)
    world.turn(gateway)
    assert gateway.route().stable == world.key("1.1.0")
    assert gateway.route().previous == world.key("1.0.0")
    kinds = [event.kind for event in world.events() if event.kind.startswith(("rollout.", "stage."))]
    assert kinds[-2:] == [EventKind.ROLLOUT_SUCCEEDED, EventKind.STAGE_MOVED]
    assert kinds.count(EventKind.ROLLOUT_STEPPED) == 3
    events.verify(world.database)


@pytest.mark.req("S7", "S8")
def test_a_worse_candidate_is_taken_back_by_itself(world: RolloutWorld) -> None:
    """With the evidence in the event; tombstoned until somebody clears it; the stage never moved."""
    gateway = world.serving()
    worse = world.key("1.1.0")
    gateway.failing[worse] = 30
    world.promote("1.1.0", by="owner")
    term = world.endpoint().epoch.term
    gone = world.until(RolloutState.ROLLED_BACK, gateway)
    assert "more callers fail than on stable" in (gone.outcome or "")
    assert gone.epoch.term == term + 1
    assert gateway.serves() == world.key("1.0.0")
    assert world.in_production() == "1.0.0"
    assert "more callers fail" in (world.get("1.1.0").tombstone or "")
    told = world.events(EventKind.ROLLOUT_ROLLING_BACK, EventKind.ROLLOUT_ROLLED_BACK)
    assert [(event.kind, event.body["state"]) for event in told] == [
        (EventKind.ROLLOUT_ROLLING_BACK, "rolling_back"),
        (EventKind.ROLLOUT_ROLLED_BACK, "rolled_back"),
    ]
    history = world.read("owner", world.promotions.history, CHURN, stage=None, limit=5)
    (attempt,) = history.attempts
    assert (attempt.id, attempt.semver, attempt.stage) == (gone.id, "1.1.0", "production")
    assert (attempt.state, attempt.outcome) == (RolloutState.ROLLED_BACK, gone.outcome)
    assert attempt.started_at < attempt.finished_at
    elsewhere = world.read("owner", world.promotions.history, CHURN, stage="staging", limit=5)
    assert elsewhere.attempts == ()
    assert told[0].body["judgement"]["blamed"] == "errors"
    assert told[0].actor.name == "modelkeep"
    with pytest.raises(errors.Tombstoned):
        world.promote("1.1.0", by="owner")
    with pytest.raises(errors.Tombstoned):
        endpoint, version = world.endpoint(), world.get("1.1.0")
        world.do("owner", world.rollouts.start, endpoint, version, reason="again", request=None)
    world.do("owner", world.promotions.clear, parse_ref("churn:1.1.0"), "the cause was mended")
    gateway.failing.clear()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.in_production() == "1.1.0"
    events.verify(world.database)


@pytest.mark.req("S8")
def test_an_abort_leaves_the_former_version_in_production(world: RolloutWorld) -> None:
    """With weight it is taken back and waited for; before, it is cancelled and no stain."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    with pytest.raises(errors.Invalid):
        world.do("owner", world.rollouts.abort, NAME, "  ")
    cancelled = world.do("owner", world.rollouts.abort, NAME, "not now")
    assert cancelled.state is RolloutState.CANCELLED
    assert world.get("1.1.0").tombstone is None
    assert world.endpoint().rollout is None
    with pytest.raises(errors.RolloutNotFound, match="modelkeep rollback"):
        world.do("owner", world.rollouts.abort, NAME, "again")
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    assert gateway.route().candidate_ppm == 100_000
    aborted = world.do("owner", world.rollouts.abort, NAME, "customers complain")
    assert aborted.state is RolloutState.ROLLING_BACK
    assert "aborted by owner: customers complain" in (world.get("1.1.0").tombstone or "")
    with pytest.raises(errors.RolloutActive):
        world.promote("1.2.0", by="owner")
    world.turn(gateway)
    world.turn(gateway)
    assert world.state() is RolloutState.ROLLED_BACK
    assert gateway.route().candidate is None
    assert world.in_production() == "1.0.0"
    assert world.endpoint().stable == 1


@pytest.mark.req("G9", "S9")
def test_history_tells_who_asked_and_that_the_rollout_carried_it_out(world: RolloutWorld) -> None:
    """The stay in production names the promoter and the rollout; the event Modelkeep, who took the last step,
    and the promoter in its body; and the projections can be made again from the events."""
    gateway = world.serving()
    promotion = world.promote("1.1.0", by="cat")
    world.until(RolloutState.SUCCEEDED, gateway)
    (event,) = [one for one in world.events(EventKind.STAGE_MOVED) if one.number == 2]
    assert event.actor.name == "modelkeep"
    assert event.body["asked_by"]["name"] == "cat"
    assert event.body["rollout"] == promotion.rollout
    was = world.read("owner", world.promotions.whatwas, parse_ref("churn#production"), world.now)
    assert (was.interval.actor, was.interval.cause.value) == ("cat", "rollout")
    assert (was.interval.rollout, was.interval.reason) == (promotion.rollout, "better")
    assert was.event.actor.name == "modelkeep"
    told = world.read("owner", world.promotions.history, CHURN, stage=None, limit=5).intervals
    assert [(stay.semver, stay.stage, stay.actor) for stay in told] == [
        ("1.1.0", "production", "cat"),
        ("1.0.0", "archived", "cat"),
        ("1.0.0", "production", "owner"),
    ]


@pytest.mark.req("S8", "U1")
def test_a_rollout_is_meant_by_its_id_or_by_its_endpoint(world: RolloutWorld) -> None:
    """Every word takes both; an endpoint means its current or last rollout, and an id that is not under way
    any more cannot be steered."""
    gateway = world.serving()
    first = world.latest().id
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    rollouts, current = world.rollouts, world.latest().id
    for name in (NAME, current):
        assert world.read("owner", rollouts.get_rollout, name).id == current
        assert world.read("owner", rollouts.explain, name).rollout == current
        assert world.status(name).active
        assert world.do("owner", rollouts.pause, name, "because").paused is not None
        assert world.do("owner", rollouts.resume, name, "because").paused is None
    old = world.status(first)
    assert (old.rollout.id, old.active, old.endpoint.name) == (first, False, NAME)
    for word in (rollouts.pause, rollouts.resume, rollouts.step, rollouts.abort):
        with pytest.raises(errors.RolloutFinished, match=f"{first} is succeeded"):
            world.do("owner", word, first, "because")
    assert world.do("owner", rollouts.step, current, "known good").id == current
    assert world.do("owner", rollouts.abort, current, "because").id == current
    world.until(RolloutState.ROLLED_BACK, gateway)
    assert world.read("owner", rollouts.explain, NAME).rollout == current
    with pytest.raises(errors.RolloutNotFound, match="no endpoint of that name"):
        world.read("owner", rollouts.explain, "elsewhere")
    with pytest.raises(errors.EndpointNotFound):
        world.status("elsewhere")


@pytest.mark.req("S3")
def test_pause_resume_and_a_step_by_hand(world: RolloutWorld) -> None:
    """A pause holds with proof at hand; a person goes on; each word is an event under that person's name."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.do("ann", world.rollouts.pause, NAME, "demo at noon")
    for _ in range(5):
        world.turn(gateway, seconds=STEP_S)
    assert world.latest().step == 0
    assert world.latest().ticks >= 5, "what is counted meanwhile counts"
    assert "demo at noon" in (world.latest().held or "")
    stepped = world.do("cat", world.rollouts.step, NAME, "known good")
    assert (stepped.step, stepped.weight_ppm) == (1, 500_000)
    with pytest.raises(errors.Conflict, match="not applied"):
        world.do("cat", world.rollouts.step, NAME, "and on")
    world.do("ann", world.rollouts.resume, NAME, "demo is over")
    with pytest.raises(errors.Conflict, match="not paused"):
        world.do("ann", world.rollouts.resume, NAME, "again")
    world.until(RolloutState.SUCCEEDED, gateway)
    told = world.events(EventKind.ROLLOUT_HELD, EventKind.ROLLOUT_RESUMED, EventKind.ROLLOUT_STEPPED)
    assert [(event.kind.value, event.actor.name) for event in told[1:4]] == [
        ("rollout.held", "ann"),
        ("rollout.stepped", "cat"),
        ("rollout.resumed", "ann"),
    ]


def test_nobody_steps_on_past_counts_that_have_just_come(world: RolloutWorld) -> None:
    """What was reported and not yet looked at is looked at first; the next look takes the candidate back."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    gateway.failing[world.key("1.1.0")] = 50
    gateway.turn()
    with pytest.raises(errors.GateFailed, match="more callers fail"):
        world.do("owner", world.rollouts.step, NAME, "go on")
    assert world.latest().step == 0
    world.look()
    assert world.state() is RolloutState.ROLLING_BACK


@pytest.mark.hostile("impossible-moves")
def test_a_second_promotion_waits_for_the_first(world: RolloutWorld) -> None:
    """At most one rollout of an endpoint is under way."""
    world.serving()
    world.promote("1.1.0", by="owner")
    with pytest.raises(errors.RolloutActive, match="rollout abort"):
        world.promote("1.2.0", by="owner")
    with pytest.raises(errors.Conflict):
        endpoint = structs.replace(world.endpoint(), rollout=None)
        world.do("owner", world.rollouts.start, endpoint, world.get("1.0.0"), reason="again", request=None)


@pytest.mark.req("S8")
def test_a_rollback_of_the_model_moves_traffic_in_the_same_act(world: RolloutWorld) -> None:
    """The version before returns at once, the one that leaves is no way back, and nothing goes to and fro."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    term = world.endpoint().epoch.term
    world.rollback(by="owner")
    endpoint = world.endpoint()
    assert (endpoint.stable, endpoint.previous) == (1, None)
    assert endpoint.epoch == Epoch(term + 1, 0)
    world.turn(gateway)
    assert gateway.serves() == world.key("1.0.0")
    with pytest.raises(errors.NoRollbackTarget):
        gateway.roll_back()
    with pytest.raises(errors.NoRollbackTarget):
        world.rollback(by="owner")


# --------------------------------------------------------------------------------------------------- gateways


def test_the_table_names_every_version_and_rises_exactly_with_its_routes(world: RolloutWorld) -> None:
    """A number is never reused for other routes, and holds, pauses and ticks do not raise it."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    seen: dict[int, object] = {}
    last = 0
    for turn in range(50):
        world.turn(gateway)
        if turn == 3:
            world.do("owner", world.rollouts.pause, NAME, "look")
        if turn == 20:
            world.do("owner", world.rollouts.resume, NAME, "looked")
        table = world.read("gate", world.rollouts.table_if_newer, -1)
        assert table is not None
        check_table(table)
        assert table.number >= last
        if table.number == last:
            assert table.routes == seen[last]
        elif last:
            assert table.routes != seen[last]
        last = table.number
        seen[last] = table.routes
        assert world.read("gate", world.rollouts.table_if_newer, last) is None
    assert world.state() is RolloutState.SUCCEEDED
    assert len(seen) == 4, "three steps and the end"


@pytest.mark.req("S7")
def test_repeated_and_reordered_reports_count_once_and_are_explained(world: RolloutWorld) -> None:
    """Answers that are lost, reports that come twice or in another order: the evidence is that of each tick
    once, in the order of arrival, and recomputing gives the same bits."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    start = world.latest().ticks
    held_back = []
    for _ in range(6):
        gateway.serve()
        held_back.append(gateway.make_report())
        gateway.waiting.clear()
    for place in (1, 0, 1, 3, 2, 2, 5, 4, 0):
        gateway.send(held_back[place])
        world.look()
    assert world.latest().ticks == start + 6
    explained = world.read("eve", world.rollouts.explain, world.latest().id)
    assert explained.equal
    assert explained.ticks == world.latest().ticks
    world.until(RolloutState.SUCCEEDED, gateway)
    assert world.read("eve", world.rollouts.explain, world.latest().id).equal


def test_ticks_that_are_no_evidence_are_taken_and_not_kept(world: RolloutWorld) -> None:
    """Of no rollout, of another's endpoint, of a finished one, without a share: acknowledged, so that the
    gateway need not keep them."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    gateway.poll()
    gateway.obey()
    gateway.serve()
    one = gateway.waiting[-1]
    foreign = (
        structs.replace(one, rollout=None, number=one.number + 1),
        structs.replace(one, endpoint="other", number=one.number + 2),
        structs.replace(one, rollout="rol_none", number=one.number + 3),
        structs.replace(one, candidate_ppm=0, number=one.number + 4),
    )
    reply = gateway.send(structs.replace(gateway.make_report(), ticks=foreign))
    assert len(reply.taken) == 4
    assert world.database.read(lambda tx: list(store.ticks_of(tx, world.latest().id))) == []
    assert world.database.read(lambda tx: list(store.ticks_of(tx, ""))) == []


@pytest.mark.req("S8")
def test_a_gateways_own_rollback_becomes_the_registrys(world: RolloutWorld) -> None:
    """With a rollout under way: taken back, tombstoned, once however often it is told; others follow."""
    first = world.serving()
    second = FakeGateway(world, "g2")
    world.promote("1.1.0", by="owner")
    for _ in range(4):
        world.turn(first, second)
    assert first.route().candidate_ppm == second.route().candidate_ppm == 100_000
    first.silent = True
    done = first.roll_back(cause="lease lost")
    assert first.serves() == world.key("1.0.0")
    first.silent = False
    report = first.make_report()
    for _ in range(2):
        assert first.send(report).rollbacks_taken == 1
    first.taken(report, first.send(report))
    assert world.state() is RolloutState.ROLLING_BACK
    assert world.latest().epoch == done.epoch
    assert "lease lost (ann at gateway g1, 0.30 ms)" in (world.get("1.1.0").tombstone or "")
    assert len(world.events(EventKind.VERSION_TOMBSTONED)) == 1
    world.turn(first, second)
    world.turn(first, second)
    assert world.state() is RolloutState.ROLLED_BACK
    assert second.route().candidate is None
    assert world.in_production() == "1.0.0"
    assert world.read("eve", world.rollouts.explain, world.latest().id).equal


@pytest.mark.req("S8")
def test_a_gateways_rollback_without_a_rollout_moves_the_stage_back(world: RolloutWorld) -> None:
    """Stage, endpoint and tombstone follow what is served, in one act with its events."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    done = gateway.roll_back()
    gateway.report()
    endpoint = world.endpoint()
    assert (endpoint.stable, endpoint.previous, endpoint.epoch) == (1, None, done.epoch)
    assert world.in_production() == "1.0.0"
    assert world.get("1.1.0").tombstone is not None
    moved = world.events(EventKind.STAGE_MOVED)[-1]
    assert (moved.number, moved.body["cause"]) == (1, "rollback")
    world.turn(gateway)
    assert gateway.serves() == world.key("1.0.0")
    events.verify(world.database)


@pytest.mark.hostile("impossible-moves")
@pytest.mark.req("S2", "S8", "V1")
def test_a_version_of_equal_bytes_is_rolled_out_and_taken_back_as_itself(world: RolloutWorld) -> None:
    """A PATCH of other metadata or signature has the bytes of the version before, and is another."""
    signature = Signature(inputs=(Field(name="x", type=DataType.FLOAT64, maximum=9.0),))
    world.version("1.0.1", digest=world.get("1.0.0").digest, signature=signature)
    gateway = world.serving()
    world.promote("1.0.1", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    route = gateway.route()
    assert (route.stable, route.candidate) == (world.key("1.0.0"), world.key("1.0.1"))
    assert {spec.semver: spec.signature for spec in check_table(gateway.live).versions} == {
        "1.0.0": world.get("1.0.0").signature,
        "1.0.1": signature,
    }
    phases = world.status().gateways[0].phases
    assert phases == {"1.0.0": VersionPhase.READY, "1.0.1": VersionPhase.READY}
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    assert (gateway.serves(), world.in_production()) == (world.key("1.0.1"), "1.0.1")
    gateway.roll_back()
    gateway.report()
    assert (world.endpoint().stable, world.in_production()) == (1, "1.0.0")
    assert world.get("1.0.1").tombstone is not None
    assert world.get("1.0.0").tombstone is None


@pytest.mark.req("S8")
def test_a_rollback_that_is_told_after_the_success_is_followed(world: RolloutWorld) -> None:
    """The gateway took the candidate back while the registry, not knowing, called it a success: what is
    served wins, and stage and endpoint come to agree."""
    first = world.serving()
    second = FakeGateway(world, "g2")
    world.promote("1.1.0", by="owner")
    for _ in range(4):
        world.turn(first, second)
    first.silent = True
    first.roll_back()
    world.later(seconds=20)  # nobody waits for a gateway that is silent
    world.until(RolloutState.SUCCEEDED, second)
    assert world.in_production() == "1.1.0"
    first.silent = False
    first.turn()
    assert world.in_production() == "1.0.0"
    assert world.endpoint().stable == 1
    world.turn(first, second)
    assert first.serves() == second.serves() == world.key("1.0.0")
    assert first.route().epoch == second.route().epoch == world.endpoint().epoch


def test_two_rollbacks_in_one_report_are_both_followed(world: RolloutWorld) -> None:
    """First the candidate, then the stable version: the gateway is back at the one before."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    world.promote("1.2.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    gateway.poll()
    gateway.obey()
    gateway.roll_back()
    gateway.roll_back()
    gateway.report()
    assert world.endpoint().stable == 1
    assert world.in_production() == "1.0.0"
    for _ in range(3):
        world.turn(gateway)
    assert world.state() is RolloutState.ROLLED_BACK
    assert gateway.serves() == world.key("1.0.0")
    assert gateway.route().epoch == world.endpoint().epoch
    assert world.get("1.1.0").tombstone is not None
    assert world.get("1.2.0").tombstone is not None


def test_a_base_that_is_taken_back_ends_the_rollout_that_starts_from_it(world: RolloutWorld) -> None:
    """The candidate was to be compared with a version that is not served any more."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.SUCCEEDED, gateway)
    world.turn(gateway)
    world.promote("1.2.0", by="owner")
    gateway.roll_back()  # before it hears of the rollout
    gateway.report()
    assert world.state() is RolloutState.CANCELLED
    assert world.get("1.2.0").tombstone is None
    assert world.in_production() == "1.0.0"
    world.turn(gateway)
    assert gateway.serves() == world.key("1.0.0")


def test_a_late_gateway_does_not_overrule_what_was_decided_without_it(world: RolloutWorld) -> None:
    """It took back a version that nobody serves any more: it is outranked, and follows again."""
    first = world.serving()
    second = FakeGateway(world, "g2")
    world.promote("1.1.0", by="owner")
    for _ in range(4):
        world.turn(first, second)
    first.silent = True
    first.roll_back()
    world.later(seconds=20)
    world.until(RolloutState.SUCCEEDED, second)
    world.promote("1.2.0", by="owner")
    world.until(RolloutState.SUCCEEDED, second)
    first.silent = False
    first.turn()
    assert world.in_production() == "1.2.0"
    world.turn(first, second)
    world.turn(first, second)
    assert first.serves() == second.serves() == world.key("1.2.0")
    assert first.route().epoch == world.endpoint().epoch


def test_a_rollback_the_registry_has_overtaken_is_no_news(world: RolloutWorld) -> None:
    """Old epochs are no-ops, also when they come from below."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    gateway.poll()
    gateway.obey()
    gateway.roll_back()
    old = gateway.make_report()
    world.do("owner", world.rollouts.abort, NAME, "also here")
    world.do("owner", world.promotions.clear, parse_ref("churn:1.1.0"), "mended")
    before = world.latest()
    number = world.table_number()
    gateway.send(old)
    assert world.latest() == before
    assert world.table_number() == number
    unknown = structs.replace(gateway.rollbacks[0], endpoint="nowhere")
    gateway.send(structs.replace(old, rollbacks=(unknown,)))


def test_a_gateway_that_was_killed_holds_the_step_until_it_is_back(world: RolloutWorld) -> None:
    """It serves stable alone under the same epoch: that is not the weight that was wanted."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    gateway.restart()
    gateway.report()
    world.later(seconds=60)
    gateway.report()
    world.look()
    assert world.latest().step == 0
    assert world.latest().step_since is None
    assert not world.status().gateways[0].in_step
    world.until(RolloutState.SUCCEEDED, gateway)


def test_silence_holds_and_says_so(world: RolloutWorld) -> None:
    """No gateway, no raise; the status says who is silent; people are told once."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    gateway.silent = True
    for _ in range(10):
        world.turn(gateway, seconds=60)
    assert world.latest().step == 0
    assert "no gateway answers" in (world.latest().held or "")
    assert not world.status().gateways[0].answering
    assert len(world.events(EventKind.ROLLOUT_HELD)) == 1
    world.later(days=8)
    world.desk.do(world.context("owner"), world.rollouts.housekeeping)
    assert world.status().gateways == ()


# ------------------------------------------------------------------------------------------------ controllers


def test_a_look_without_news_writes_nothing(world: RolloutWorld) -> None:
    """A rollout that waits costs reads only: no event, no row, no lease."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    world.until(RolloutState.STEPPING, gateway)
    world.turn(gateway)
    world.look()
    rollout_id = world.latest().id
    with world.database.statements() as statements:
        world.look()
        assert not world.read("owner", world.rollouts.has_news, rollout_id)
    writing = [text for text in statements if not text.lstrip().lower().startswith(("select", "with"))]
    assert writing == []
    assert gateway.sent


def test_two_controllers_share_the_work_by_lease(world: RolloutWorld) -> None:
    """Who changed a rollout has it for a while; when it dies the other goes on; the term rises with it."""
    gateway = world.serving()
    world.promote("1.1.0", by="owner")
    gateway.turn()
    world.look("first")
    rollout_id = world.latest().id
    assert world.latest().state is RolloutState.STEPPING
    gateway.turn()
    world.look("second")
    assert world.latest().step_since is None, "the first has it"
    world.look("first")
    assert world.latest().step_since is not None
    lease = world.database.read(lambda tx: lease_of(tx, rollout_id))
    assert (lease.owner, lease.term) == ("first", 1)
    world.later(seconds=6)
    gateway.turn()
    world.look("second")
    taken = world.database.read(lambda tx: lease_of(tx, rollout_id))
    assert (taken.owner, taken.term) == ("second", 2)
    world.desk.do(world.context("owner"), world.rollouts.release, "second")
    gateway.turn()
    world.look("third")
    assert world.database.read(lambda tx: lease_of(tx, rollout_id)).owner == "third"


def test_a_table_is_built_once_for_all_who_ask(world: RolloutWorld) -> None:
    """Gateways ask all the time; what did not change is not made again, and a poll with the newest number
    reads one row."""
    world.serving()
    table = world.read("gate", world.rollouts.table_if_newer, 0)
    assert table is not None
    with world.database.statements() as statements:
        assert world.read("gate", world.rollouts.table_if_newer, 0) is table
        assert world.read("gate", world.rollouts.table_if_newer, table.number) is None
    assert len(statements) == 2
