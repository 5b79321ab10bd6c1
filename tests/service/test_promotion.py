"""Promoting: what is granted, refused or waits; where versions stand afterwards; what is recorded of it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.answers import PromotionKind, Ruling
from modelkeep.core.catalog import DEFAULT_STAGES, StageGraph, StageSpec
from modelkeep.core.events import EventKind
from modelkeep.core.policy import ALONE, TEAM, Outcome
from modelkeep.core.promotion import MoveCause, RequestState
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.store import events as event_store
from modelkeep.store.database import Database
from tests.service.promotion_world import CHURN, World

STRICT = b"""
name: strict
stages:
  production:
    gates:
      - {gate: files_verified}
      - {gate: metric, name: auc, min: 0.8}
"""

UNGUARDED = StageGraph(
    stages=(StageSpec(name="none"), StageSpec(name="live", exclusive=True)),
    transitions=(("none", "live"),),
    displaced_to="none",
)
AS_STRICT = b"""
name: as-strict
stages:
  staging: {gates: [{gate: files_verified}]}
  production:
    approvals: {count: 1}
    gates:
      - {gate: files_verified}
      - {gate: signature}
      - {gate: metric, name: auc, min: 0.8}
"""


@pytest.fixture
def world(database: Database) -> World:
    """A team's server, where production asks for one other person."""
    return World(database)


@pytest.fixture
def alone(sqlite_database: Database) -> World:
    """Local mode: nobody else to ask."""
    return World(sqlite_database, ALONE)


# ------------------------------------------------------------------------------------------------ moving


@pytest.mark.req("G1")
def test_a_promotion_moves_the_version_and_displaces_the_former(world: World) -> None:
    """In one act the newcomer takes the slot, the former occupant goes where the graph says, and one event
    tells it."""
    world.versions("1.0.0", "1.1.0")
    first = world.promote("1.0.0", "staging")
    assert (first.kind, first.version.stage, first.displaced) == (PromotionKind.MOVED, "staging", None)
    second = world.promote("1.1.0", "staging")
    assert second.displaced == 1
    assert (world.stage("1.0.0"), world.stage("1.1.0")) == ("archived", "staging")
    moves = world.events(EventKind.STAGE_MOVED)
    assert [(e.number, e.body["from"], e.body["to"]) for e in moves] == [
        (1, "none", "staging"),
        (2, "none", "staging"),
    ]
    assert moves[1].body["displaced"]["number"] == 1
    assert moves[1].body["gates"][0]["outcome"] == "passed"
    assert event_store.verify(world.database).events == len(world.events())


@pytest.mark.req("G1")
def test_a_version_that_goes_back_to_the_first_stage_is_as_if_it_had_never_moved(world: World) -> None:
    """Standing in the first stage is not recorded, before the first move as after the last."""
    world.versions("1.0.0")
    world.promote("1.0.0", "staging")
    world.promote("1.0.0", "none")
    assert world.stage("1.0.0") == "none"
    history = world.read("ann", world.promotions.history, CHURN, stage=None, limit=10)
    assert [(i.stage, i.to_sequence is None) for i in history.intervals] == [("staging", False)]


@pytest.mark.req("G1")
@pytest.mark.parametrize(
    ("semver", "to", "error", "said"),
    [
        ("1.0.0", "staging", errors.InvalidTransition, "already in staging"),
        ("1.0.0", "nowhere", errors.InvalidTransition, "the stages are none, staging, production, archived"),
        ("9.9.9", "staging", errors.VersionNotFound, "9.9.9"),
    ],
)
def test_a_move_that_cannot_be_is_refused(
    world: World, semver: str, to: str, error: type[errors.ModelkeepError], said: str
) -> None:
    """What is not there, or where the version is already, changes nothing and says why."""
    world.versions("1.0.0")
    world.promote("1.0.0", "staging")
    before = len(world.events())
    with pytest.raises(error, match=said):
        world.promote(semver, to)
    assert len(world.events()) == before


@pytest.mark.req("G1")
def test_a_models_own_graph_is_obeyed(world: World) -> None:
    """Stages are data: another model may have others, with other moves."""
    graph = StageGraph(
        stages=(
            StageSpec(name="new"),
            StageSpec(name="canary", exclusive=True),
            StageSpec(name="live", exclusive=True),
        ),
        transitions=(("new", "canary"), ("canary", "live"), ("live", "new")),
        displaced_to="new",
    )
    world.model(stages=graph)
    world.version("1.0.0")
    world.version("1.1.0")
    with pytest.raises(errors.InvalidTransition, match=r"from there it can go to canary\."):
        world.promote("1.0.0", "live")
    for semver in ("1.0.0", "1.1.0"):
        world.promote(semver, "canary")
        world.promote(semver, "live")
    assert (world.stage("1.0.0"), world.stage("1.1.0")) == ("new", "live")


@pytest.mark.req("G1", "G2")
def test_sixteen_callers_racing_for_a_stage_leave_one_there(database: Database) -> None:
    """All are answered, exactly one version stands in the stage, and each move has its one event."""
    world = World(database, ALONE)
    world.versions(*(f"1.{n}.0" for n in range(16)))
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda n: world.promote(f"1.{n}.0", by="owner"), range(16)))
    assert all(promotion.kind is PromotionKind.MOVED for promotion in done)
    moves = world.events(EventKind.STAGE_MOVED)
    assert sorted(event.number for event in moves) == list(range(1, 17))
    stages = [world.stage(f"1.{n}.0") for n in range(16)]
    assert sorted(stages) == ["archived"] * 15 + ["production"]
    assert world.in_production() == f"1.{moves[-1].number - 1}.0"
    assert [event.body["displaced"]["number"] for event in moves[1:]] == [
        event.number for event in moves[:-1]
    ]


@pytest.mark.req("G1")
def test_sixteen_callers_promoting_one_version_move_it_once(database: Database) -> None:
    """One of them moves it; the others are told that it is there already."""
    world = World(database, ALONE)
    world.versions("1.0.0")

    def attempt(_: int) -> str:
        try:
            return str(world.promote("1.0.0", by="owner").kind)
        except errors.InvalidTransition:
            return "already"

    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(attempt, range(16))) == ["already"] * 15 + ["moved"]
    assert len(world.events(EventKind.STAGE_MOVED)) == 1


def test_a_slot_taken_by_another_process_is_said_so(world: World) -> None:
    """The unique index is the last guard: where two processes disagree, one of them is refused."""
    world.versions("1.0.0", "1.1.0")
    world.promote("1.0.0", "staging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modelkeep.store.promotion.occupant", lambda *_: None)
        with pytest.raises(errors.StageMoved, match="at the same moment"):
            world.promote("1.1.0", "staging")
    assert (world.stage("1.0.0"), world.stage("1.1.0")) == ("staging", "none")


# ------------------------------------------------------------------------------------------- gates and people


@pytest.mark.req("G3")
def test_a_denial_is_recorded_and_says_everything(world: World) -> None:
    """The caller gets every gate's answer, the log keeps it, and nothing else has changed."""
    world.versions("1.0.0")
    world.do("dan", world.promotions.set_policy, "churn", STRICT)
    with pytest.raises(errors.PolicyDenied) as caught:
        world.promote("1.0.0")
    assert caught.value.message == (
        "churn:1.0.0 may not enter production: auc was not measured. Register the version with the metric "
        "auc (at least 0.8); see 'modelkeep gate churn:1.0.0 --to production --explain'."
    )
    outcomes = {gate["gate"]: gate["outcome"] for gate in caught.value.details["gates"]}
    assert outcomes == {"files_verified": "passed", "metric:auc": "inconclusive"}
    (event,) = world.events(EventKind.PROMOTION_DENIED)
    assert event.body["gates"] == caught.value.details["gates"]
    assert (event.reason, event.actor.name, event.request_id) == ("better", "ann", "http-ann")
    assert world.stage("1.0.0") == "none"


@pytest.mark.req("G3")
def test_files_that_were_not_or_do_not_verify_deny(alone: World) -> None:
    """Missing measurement is inconclusive, and inconclusive never promotes."""
    alone.versions("1.0.0")
    for verified in (None, False):
        with pytest.raises(errors.PolicyDenied):
            alone.promote("1.0.0", by="owner", files_verified=verified)
    assert alone.promote("1.0.0", by="owner").kind is PromotionKind.MOVED


@pytest.mark.req("G2")
def test_one_owner_promotes_directly_in_local_mode(alone: World) -> None:
    """Where there is nobody else, nobody is asked, and the record says the name was asserted."""
    alone.versions("1.0.0")
    assert alone.promote("1.0.0", by="owner").request is None
    (event,) = alone.events(EventKind.STAGE_MOVED)
    assert event.actor.asserted
    assert alone.events(EventKind.REQUEST_OPENED) == []


@pytest.mark.req("G2")
def test_a_promotion_that_needs_people_opens_the_request_and_names_it(world: World) -> None:
    """The request is kept although the caller gets an error, it is found again, and the approval opens the
    way."""
    world.versions("1.0.0")
    with pytest.raises(errors.ApprovalRequired) as caught:
        world.promote("1.0.0", ticket="RISK-1")
    request = caught.value.details["request"]
    assert caught.value.message == (
        "churn:1.0.0 needs 1 approval by an approver, a maintainer or an admin other than ann before it "
        f"enters production; have somebody run 'modelkeep review {request} --approve', then promote again."
    )
    assert caught.value.details["missing"] == 1
    with pytest.raises(errors.ApprovalRequired) as again:
        world.promote("1.0.0", by="cat")
    assert again.value.details["request"] == request
    assert len(world.events(EventKind.REQUEST_OPENED)) == 1
    world.review(request, "bob")
    moved = world.promote("1.0.0")
    assert (moved.kind, moved.request) == (PromotionKind.MOVED, request)
    (event,) = world.events(EventKind.STAGE_MOVED)
    assert (event.body["request"], event.body["approved_by"]) == (request, ["bob"])
    closed = world.read("eve", world.promotions.get_request, request)
    assert (closed.state, closed.ticket, closed.approved_by) == (RequestState.PROMOTED, "RISK-1", ("bob",))


@pytest.mark.req("G2")
def test_an_approval_is_used_up_by_the_promotion_it_allowed(world: World) -> None:
    """Coming back to production asks for people again."""
    world.versions("1.0.0", "1.1.0")
    for semver in ("1.0.0", "1.1.0"):
        world.review(world.ask(semver).id)
        world.promote(semver)
    with pytest.raises(errors.ApprovalRequired):
        world.promote("1.0.0")


@pytest.mark.req("G2", "G10")
@pytest.mark.parametrize("who", ["eve", "fay", "bob"])
def test_promoting_takes_the_permission(world: World, who: str) -> None:
    """Viewers, contributors and approvers do not promote; the message names what is missing."""
    world.versions("1.0.0")
    with pytest.raises(errors.NotAllowed, match="lacks the permission 'promote' on churn"):
        world.promote("1.0.0", "staging", by=who)


@pytest.mark.req("G10")
def test_a_stranger_is_not_told_that_the_model_exists(world: World) -> None:
    """For somebody without a grant a model that is there and one that is not are the same."""
    world.versions("1.0.0")
    promotions = world.promotions
    said = []
    for name in ("churn", "other"):
        ref = parse_ref(f"{name}:1.0.0")
        for method, more in (
            (promotions.promote, ("production", "x")),
            (promotions.gate, ("production",)),
            (promotions.open_request, ("production", "x")),
            (promotions.whatwas, (world.now,)),
        ):
            with pytest.raises(errors.ModelNotFound) as caught:
                world.do("zoe", method, ref, *more)
            said.append(caught.value.message.replace(name, "NAME"))
    assert len(set(said)) == 1


def test_a_reason_is_asked_for(world: World) -> None:
    """A promotion and a rollback without a why are refused before anything else."""
    world.versions("1.0.0")
    ref = parse_ref("churn:1.0.0")
    with pytest.raises(errors.Invalid, match="Say why"):
        world.do("ann", world.promotions.promote, ref, "staging", "  ", files_verified=True)
    with pytest.raises(errors.Invalid, match="Say why"):
        world.rollback(reason="")


@pytest.mark.req("G2")
def test_a_request_for_something_else_does_not_count(world: World) -> None:
    """Naming the request of another version or stage is told, not ignored."""
    world.versions("1.0.0", "1.1.0")
    request = world.ask("1.0.0")
    world.review(request.id)
    with pytest.raises(errors.Invalid, match=r"is about churn:1\.0\.0 and production, not churn:1\.1\.0"):
        world.promote("1.1.0", request=request.id)
    with pytest.raises(errors.RequestNotFound):
        world.promote("1.1.0", request="req_nothing")
    assert world.promote("1.0.0", request=request.id).request == request.id
    with pytest.raises(errors.RequestClosed, match="is promoted"):
        world.promote("1.0.0", "archived", request=request.id)


@pytest.mark.req("G3")
def test_gate_explains_without_changing_anything(world: World) -> None:
    """The same answer as promoting would get, with the next command, and no event."""
    world.versions("1.0.0", "1.1.0")
    before = len(world.events())
    ref = parse_ref("churn:1.0.0")

    def gate(**more: object) -> object:
        return world.read("eve", world.promotions.gate, ref, "production", **more)

    report = gate()
    assert (report.ruling, report.next) == (
        Ruling.DENIED,
        "make the blob store reachable and try again",
    )
    report = gate(files_verified=True)
    assert (report.ruling, report.approvals_missing, report.policy) == (
        Ruling.AWAITING_APPROVAL,
        1,
        "built in",
    )
    assert report.next == "modelkeep request churn:1.0.0 --to production -m WHY"
    warned = {result.gate: (result.outcome, result.blocks) for result in report.gates}
    assert warned["metadata"] == (Outcome.FAILED, False)
    assert len(world.events()) == before
    request = world.ask("1.0.0")
    assert gate(files_verified=True).next == f"modelkeep review {request.id} --approve"
    world.review(request.id)
    report = gate(files_verified=True)
    assert (report.ruling, report.approved_by, report.request) == (Ruling.GRANTED, ("bob",), request.id)
    world.promote("1.0.0")
    report = gate(files_verified=True)
    assert report.ruling is Ruling.DENIED
    assert "already in production" in report.obstacle


# ---------------------------------------------------------------------------------------------------- stages


@pytest.mark.req("G1")
def test_a_graph_may_change_where_it_fits(world: World) -> None:
    """Stages can be added, and emptied ones removed; those that hold a version stay."""
    world.versions("1.0.0", "1.1.0")
    world.promote("1.0.0", "staging")
    wider = StageGraph(
        stages=(*DEFAULT_STAGES.stages, StageSpec(name="shadow")),
        transitions=(*DEFAULT_STAGES.transitions, ("staging", "shadow")),
        displaced_to="archived",
    )
    changed = world.do("ann", world.promotions.set_stages, CHURN, wider)
    assert changed.stages == wider
    world.promote("1.0.0", "shadow")
    with pytest.raises(errors.InvalidTransition, match="shadow cannot go while 1 version"):
        world.do("ann", world.promotions.set_stages, CHURN, DEFAULT_STAGES)
    with pytest.raises(errors.InvalidTransition, match="first stage is none"):
        world.do(
            "ann",
            world.promotions.set_stages,
            CHURN,
            StageGraph(stages=(StageSpec(name="other"), *wider.stages), transitions=(), displaced_to="other"),
        )
    with pytest.raises(errors.NotAllowed):
        world.do("fay", world.promotions.set_stages, CHURN, wider)
    (event,) = world.events(EventKind.STAGES_CHANGED)
    assert event.body["to"]["stages"][-1]["name"] == "shadow"


@pytest.mark.req("G1")
def test_a_stage_with_two_versions_cannot_become_exclusive(world: World) -> None:
    """The slot's index follows the graph, so the graph asks the versions first."""
    world.versions("1.0.0", "1.1.0")

    def graph(exclusive: bool) -> StageGraph:
        return StageGraph(
            stages=(
                StageSpec(name="none"),
                StageSpec(name="test", exclusive=exclusive),
                StageSpec(name="archived"),
            ),
            transitions=(("none", "test"), ("test", "archived")),
            displaced_to="archived",
        )

    world.do("dan", world.promotions.set_stages, CHURN, graph(False))
    world.promote("1.0.0", "test")
    world.promote("1.1.0", "test")
    assert (world.stage("1.0.0"), world.stage("1.1.0")) == ("test", "test")
    with pytest.raises(errors.InvalidTransition, match="while 2 versions are in it"):
        world.do("ann", world.promotions.set_stages, CHURN, graph(True))
    world.promote("1.0.0", "archived")
    world.do("ann", world.promotions.set_stages, CHURN, graph(True))
    world.version("1.2.0")
    assert world.promote("1.2.0", "test").displaced == 2


# -------------------------------------------------------------------------------------------------- rollouts


@pytest.mark.req("G1")
def test_where_an_endpoint_follows_the_stage_waits_for_the_rollout(database: Database) -> None:
    """The promotion starts a rollout; the stage moves when the rollout column says so, with the decision
    that was taken at the start."""
    world = World(database, serving=True)
    world.versions("1.0.0")
    world.endpoint()
    request = world.ask("1.0.0")
    world.review(request.id)
    begun = world.promote("1.0.0")
    assert (begun.kind, begun.endpoint, begun.version.stage) == (PromotionKind.ROLLOUT, "churn", "none")
    assert world.stage("1.0.0") == "none"
    with pytest.raises(errors.RolloutActive):
        world.rollback(to=parse_ref("churn:1.0.0"))
    assert world.read("ann", world.promotions.get_request, request.id).state is RequestState.PROMOTED

    interval = world.succeed(begun.rollout)
    assert (interval.cause, interval.rollout, world.stage("1.0.0")) == (
        MoveCause.ROLLOUT,
        begun.rollout,
        "production",
    )
    was = world.read("ann", world.promotions.whatwas, parse_ref("churn#production"), world.now)
    assert was.approved_by == was.interval.approved_by == ("bob",)
    assert (was.interval.actor, was.interval.request) == ("ann", request.id)
    assert [result.gate for result in was.gates] == ["files_verified", "signature", "metadata"]
    assert was.request is not None
    assert was.request.id == request.id
    again = world.succeed(begun.rollout)
    assert again == interval
    assert len(world.events(EventKind.STAGE_MOVED)) == 1


def test_a_served_stage_is_not_emptied(sqlite_database: Database) -> None:
    """Archiving what an endpoint serves is refused with what to do instead."""
    world = World(sqlite_database, ALONE, serving=True)
    world.versions("1.0.0")
    world.promote("1.0.0")
    world.endpoint()
    with pytest.raises(errors.Protected, match=r"The endpoint churn serves what is in production"):
        world.promote("1.0.0", "archived")
    assert world.stage("1.0.0") == "production"


def test_the_graph_of_a_followed_stage_stays_fit_for_it(sqlite_database: Database) -> None:
    """An endpoint's stage can neither go nor hold several versions."""
    world = World(sqlite_database, ALONE, serving=True)
    world.versions("1.0.0")
    world.endpoint()
    bare = StageGraph(
        stages=(StageSpec(name="none"), StageSpec(name="production")), transitions=(), displaced_to="none"
    )
    gone = StageGraph(stages=(StageSpec(name="none"),), transitions=(), displaced_to="none")
    with pytest.raises(errors.InvalidTransition, match="must stay exclusive"):
        world.do("ann", world.promotions.set_stages, CHURN, bare)
    with pytest.raises(errors.InvalidTransition, match="while an endpoint follows it"):
        world.do("ann", world.promotions.set_stages, CHURN, gone)


# -------------------------------------------------------------------------------------------------- policies


@pytest.mark.req("G3")
def test_the_nearest_policy_holds(world: World) -> None:
    """A model's own before its project's before the installation's before the one built in."""
    world.versions("1.0.0")
    get, put = world.promotions.get_policy, world.promotions.set_policy
    assert world.read("eve", get, "churn").source == "built in"
    assert world.read("eve", get, None).policy == TEAM
    world.do("dan", put, None, b"name: everywhere")
    assert (world.read("eve", get, "churn").source, world.read("eve", get, "churn").scope) == (
        "installation",
        "churn",
    )
    world.do("dan", put, "default/", b"name: project")
    assert world.read("eve", get, "churn").policy.name == "project"
    assert world.read("eve", get, "default/").source == "default/"
    record = world.do("ann", put, "churn", STRICT)
    assert (record.version, record.source, record.set_by) == (1, "churn", "ann")
    assert world.read("eve", get, "churn") == record
    assert world.read("eve", get, None).policy.name == "everywhere"


@pytest.mark.req("G3")
def test_policies_are_versioned_and_kept_whole_in_the_log(world: World) -> None:
    """Each change is a new version with its digest; setting what holds already is no change."""
    world.versions("1.0.0")
    put = world.promotions.set_policy
    first = world.do("dan", put, "churn", STRICT)
    assert world.do("cat", put, "churn", STRICT) == first
    second = world.do("dan", put, "churn", b'{"name": "loose"}')
    assert (second.version, second.digest != first.digest) == (2, True)
    events = world.events(EventKind.POLICY_CHANGED)
    assert [(e.subject, e.model, e.body["version"], e.body["from"]) for e in events] == [
        ("policy/churn", "churn", 1, None),
        ("policy/churn", "churn", 2, first.digest),
    ]
    assert events[0].body["document"]["stages"]["production"]["gates"][1]["min"] == 0.8


@pytest.mark.req("G3", "G10")
def test_who_may_set_a_policy(world: World) -> None:
    """A model's takes its maintainer, everybody's takes one of everything; a stranger learns nothing."""
    world.versions("1.0.0")
    world.person("gus", Role.MAINTAINER, "default", "churn")
    put = world.promotions.set_policy
    world.do("gus", put, "churn", AS_STRICT)
    for scope in ("default/", None):
        with pytest.raises(errors.NotAllowed, match="lacks the permission 'configure'"):
            world.do("gus", put, scope, AS_STRICT)
    with pytest.raises(errors.ModelNotFound):
        world.do("zoe", put, "churn", STRICT)
    with pytest.raises(errors.ModelNotFound):
        world.read("zoe", world.promotions.get_policy, "churn")
    with pytest.raises(errors.ModelNotFound):
        world.read("eve", world.promotions.get_policy, "nothing")


@pytest.mark.req("G3", "G7", "G10")
def test_nobody_takes_the_four_eyes_away_alone(world: World) -> None:
    """A policy that asks for less than the next scope up takes an admin; a maintainer may ask for more."""
    world.versions("1.0.0")
    put = world.promotions.set_policy
    with pytest.raises(errors.NotAllowed, match="less than the built-in one: staging drops") as caught:
        world.do("ann", put, "churn", b"name: p\nstages: {production: {}}")
    assert caught.value.details["weaker"] == [
        "staging drops the gate files_verified",
        "production asks for 0 approvals instead of 1",
        "production drops the gate files_verified",
        "production drops the gate signature",
    ]
    with pytest.raises(errors.ApprovalRequired):
        world.promote("1.0.0")
    for scope in ("default/", None):
        with pytest.raises(errors.NotAllowed, match="asks for less than the built-in one"):
            world.do("ann", put, scope, b"name: p")
    world.do("dan", put, "default/", AS_STRICT)
    with pytest.raises(errors.NotAllowed, match=r"that of default/: .*asks for less in the gate metric:auc"):
        world.do("ann", put, "churn", AS_STRICT.replace(b"0.8", b"0.7"))
    assert world.do("ann", put, "churn", AS_STRICT.replace(b"0.8", b"0.9")).version == 1
    world.person("ida", Role.ADMIN, "default", "churn")
    assert world.do("ida", put, "churn", b"name: p").version == 2
    assert world.promote("1.0.0").version.stage == "production"


def test_the_owner_of_a_machine_sets_what_policy_they_like(alone: World) -> None:
    """In local mode nobody else is there to ask."""
    alone.versions("1.0.0")
    assert alone.do("owner", alone.promotions.set_policy, "churn", b"name: p").version == 1
    assert alone.do("owner", alone.promotions.set_stages, CHURN, UNGUARDED).stages == UNGUARDED


@pytest.mark.req("G1", "G7", "G10")
def test_stages_do_not_get_round_the_policy(world: World) -> None:
    """Dropping a guarded stage, a new way into one, and one that the model's own policy leaves unguarded take
    an admin."""
    world.versions("1.0.0")
    put = world.promotions.set_stages
    with pytest.raises(errors.NotAllowed, match="production, which the policy guards, goes") as caught:
        world.do("ann", put, CHURN, UNGUARDED)
    assert len(caught.value.details["weaker"]) == 2
    assert world.events(EventKind.STAGES_CHANGED) == []
    fewer = tuple(way for way in DEFAULT_STAGES.transitions if way != ("none", "production"))
    world.do("ann", put, CHURN, structs.replace(DEFAULT_STAGES, transitions=fewer))
    with pytest.raises(errors.NotAllowed, match="production can be entered from none as well"):
        world.do("ann", put, CHURN, DEFAULT_STAGES)
    world.do("dan", put, CHURN, UNGUARDED)
    world.do("ann", world.promotions.set_policy, "churn", b"name: p")
    with pytest.raises(errors.NotAllowed, match="production asks for 0 approvals instead of 1"):
        world.do("ann", put, CHURN, DEFAULT_STAGES)


@pytest.mark.req("G3")
@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            b"name: p\nstages: {prodction: {}}",
            r"churn has no stage 'prodction'; its stages are none, staging",
        ),
        (
            b"name: p\nstages: {production: {gates: [{gate: wrong}]}}",
            r"The gates are: files_verified, signature",
        ),
        (b"name: p\nname: q", "twice"),
    ],
)
def test_a_policy_that_would_not_do_what_was_meant_is_refused(
    world: World, document: bytes, said: str
) -> None:
    """A misspelt stage or gate is told at once, not found out by a promotion."""
    world.versions("1.0.0")
    with pytest.raises(errors.InvalidPolicy, match=said):
        world.do("ann", world.promotions.set_policy, "churn", document)
    assert world.events(EventKind.POLICY_CHANGED) == []


def test_models_of_other_projects_are_apart(world: World) -> None:
    """The same name in two projects has two slots."""
    other = ModelName("risk", "churn")
    world.versions("1.0.0")
    world.versions("1.0.0", model=other)
    world.promote("1.0.0", "staging")
    ref = parse_ref("risk/churn:1.0.0")
    world.do("ann", world.promotions.promote, ref, "staging", "x", files_verified=True)
    assert world.stage("1.0.0") == world.get("1.0.0", other).stage == "staging"
