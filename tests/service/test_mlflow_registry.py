"""What MLflow's words come to: the latest of each stage, versions by what a client has in hand, transitions.

The wire is tested in `tests/web/test_mlflow_registry.py`.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors, semver
from modelkeep.core.catalog import (
    DEFAULT_STAGES,
    DraftSpec,
    FileEntry,
    ModelChange,
    StageGraph,
    StageSpec,
    refuse_own_tags,
)
from modelkeep.core.events import EventKind
from modelkeep.core.policy import ALONE
from modelkeep.core.promotion import RequestState
from modelkeep.core.values import Exact, ModelName, Numbered, Ref
from modelkeep.service import mlflow_reading as reading
from modelkeep.service import mlflow_registry as words
from modelkeep.service import references
from modelkeep.service.catalog import Catalog
from modelkeep.service.mlflow_registry import Seen, Transition
from modelkeep.store import standing
from modelkeep.store.database import Database
from modelkeep.store.standing import VersionLine
from tests.fakes import MemoryBlobs
from tests.service.promotion_world import CHURN, World

pytestmark = pytest.mark.req("T4")

SHARED = StageGraph(
    stages=(
        StageSpec(name="none"),
        StageSpec(name="staging"),
        StageSpec(name="production"),
        StageSpec(name="archived"),
    ),
    transitions=DEFAULT_STAGES.transitions,
    displaced_to="archived",
)
OWN_WORDS = StageGraph(
    stages=(StageSpec(name="new"), StageSpec(name="Shadow"), StageSpec(name="live", exclusive=True)),
    transitions=(("new", "Shadow"), ("new", "live"), ("live", "new"), ("Shadow", "live")),
    displaced_to="new",
)


@pytest.fixture
def alone(database: Database) -> World:
    """Local mode, where the policy lets a plain workflow through."""
    return World(database, ALONE)


@pytest.fixture
def team(sqlite_database: Database) -> World:
    """A team's server, where production asks for one other person."""
    return World(sqlite_database)


def catalog_of(world: World) -> Catalog:
    """The catalog of that world's database."""
    return Catalog(MemoryBlobs(), world.desk)


def number(value: int) -> Ref:
    """A version of churn."""
    return Ref(model=CHURN, selector=Numbered(value))


def move(world: World, version: int, word: str, by: str = "owner", **more: object) -> Seen:
    """A transition as a client asks for it, the files being as they were registered."""
    asked = Transition(ref=number(version), word=word, **more)  # type: ignore[arg-type]  # a test's shorthand
    return world.do(by, words.transition, world.promotions, asked, files_verified=True)


def stages(world: World, count: int) -> list[str]:
    """Where the versions of churn stand, by number."""
    return [world.read("owner", references.resolve, number(value + 1)).stage for value in range(count)]


def latest(world: World, *wanted: str, by: str = "owner") -> list[int]:
    """The numbers that `get-latest-versions` answers."""
    return [each.number for each in world.read(by, reading.latest_versions, CHURN, wanted)]


def aliased(world: World, alias: str) -> VersionLine:
    """The version that an alias of churn points to."""
    mark = world.read("owner", reading.by_alias, CHURN, alias)
    return world.read("owner", reading.version_lines, [mark.id])[mark.id]


# ------------------------------------------------------------------------------------------------ transitions


@pytest.mark.differs("one-in-production")
def test_a_transition_displaces_the_occupant_without_the_flag_and_says_why(alone: World) -> None:
    """In an exclusive slot the former occupant goes to archived in the same event, whose reason names it."""
    alone.versions("1.0.0", "1.1.0")
    assert move(alone, 1, "Production").version.stage == "production"
    assert move(alone, 2, "production", client="mlflow-python-client/3.18.0").version.stage == "production"
    assert stages(alone, 2) == ["archived", "production"]
    first, second = alone.events(EventKind.STAGE_MOVED)
    assert first.reason == "transition by MLflow client"
    assert second.reason == (
        "transition by MLflow client (mlflow-python-client/3.18.0); production holds one version, "
        "so number 1 goes to archived"
    )
    assert second.body["displaced"]["number"] == 1
    assert [gate["gate"] for gate in second.body["gates"]] == ["files_verified", "signature"]


def test_a_rollback_by_transition_works(alone: World) -> None:
    """A version that was archived by its successor goes back to Production by the same call."""
    alone.versions("1.0.0", "1.1.0")
    move(alone, 1, "Production")
    move(alone, 2, "Production")
    assert move(alone, 1, "Production").version.stage == "production"
    assert stages(alone, 2) == ["production", "archived"]


def test_a_transition_to_where_it_stands_changes_nothing(alone: World) -> None:
    """MLflow answers the version; so do we, without an event."""
    alone.versions("1.0.0")
    move(alone, 1, "Staging")
    before = len(alone.events())
    assert move(alone, 1, "STAGING", archive_others=True).version.stage == "staging"
    assert len(alone.events()) == before


def test_a_shared_slot_is_emptied_only_with_the_flag(alone: World) -> None:
    """Without it versions stand beside each other; with it the others are archived, an event each, also when
    the one named was there already."""
    alone.model(stages=SHARED)
    for text in ("1.0.0", "1.1.0", "1.2.0"):
        alone.version(text)
    for value in (1, 2):
        move(alone, value, "Staging")
    assert stages(alone, 3) == ["staging", "staging", "none"]
    move(alone, 3, "Staging", archive_others=True)
    assert stages(alone, 3) == ["archived", "archived", "staging"]
    reasons = [event.reason for event in alone.events(EventKind.STAGE_MOVED)][-2:]
    assert reasons == ["transition by MLflow client, archive_existing_versions: number 3 is in staging"] * 2
    move(alone, 1, "Staging")
    move(alone, 3, "Staging", archive_others=True)
    assert stages(alone, 3) == ["archived", "archived", "staging"]


@pytest.mark.parametrize("word", ["None", "Archived"])
def test_nobody_is_archived_by_a_move_to_a_resting_place(alone: World, word: str) -> None:
    """The flag makes no sense there, and MLflow refuses it as well."""
    alone.versions("1.0.0")
    with pytest.raises(errors.InvalidParameter, match="archive_existing_versions"):
        move(alone, 1, word, archive_others=True)


def test_an_unknown_stage_names_those_there_are(alone: World) -> None:
    """In MLflow's words, or the model's own."""
    alone.versions("1.0.0")
    with pytest.raises(errors.InvalidParameter, match="one of None, Staging, Production, Archived"):
        move(alone, 1, "Prod")


@pytest.mark.req("G1")
@pytest.mark.hostile("races")
def test_sixteen_racing_callers_leave_one_in_production(alone: World) -> None:
    """Whoever comes last stands there, and each displaced one is in archived: threads, as clients are."""
    alone.versions(*(f"1.{minor}.0" for minor in range(16)))
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda value: move(alone, value + 1, "Production"), range(16)))
    assert [each.version.stage for each in done] == ["production"] * 16
    assert sorted(stages(alone, 16)) == ["archived"] * 15 + ["production"]
    assert len(latest(alone, "Production")) == 1


def test_a_refusal_tells_every_gate_and_the_next_command(team: World) -> None:
    """A client shows the sentence alone, so the sentence has all of it; the refusal is on record."""
    team.model()
    team.version("1.0.0", signature=None)
    with pytest.raises(errors.PolicyDenied) as refused:
        move(team, 1, "Production", by="ann")
    told = str(refused.value)
    assert "Gates: files_verified passed (" in told
    assert "signature failed (" in told
    assert "modelkeep gate churn:1.0.0 --to production --explain" in told
    assert {gate["gate"] for gate in refused.value.details["gates"]} == {
        "files_verified", "signature", "metadata",
    }  # fmt: skip
    assert len(team.events(EventKind.PROMOTION_DENIED)) == 1
    assert team.stage("1.0.0") == "none"


def test_an_approval_that_is_missing_names_its_request(team: World) -> None:
    """The same transition opens the request, and passes once somebody else has agreed."""
    team.versions("1.0.0")
    with pytest.raises(errors.ApprovalRequired) as refused:
        move(team, 1, "Production", by="ann")
    request = refused.value.details["request"]
    assert f"modelkeep review {request} --approve" in str(refused.value)
    team.review(request, by="bob")
    assert move(team, 1, "Production", by="ann").version.stage == "production"
    found = team.read("ann", team.promotions.get_request, request)
    assert found.state is RequestState.PROMOTED


@pytest.mark.req("G4")
def test_tags_never_count_as_approvals(team: World) -> None:
    """What teams write by hand (status, approver, reason) stays what it is: labels."""
    team.versions("1.0.0")
    tags = {"approval_status": "approved", "approver": "bob", "request_reason": "better", "approvals": "2"}
    team.do("fay", catalog_of(team).change_version, number(1), ModelChange(set_tags=tags))
    for _ in range(2):
        with pytest.raises(errors.ApprovalRequired, match="needs 1 approval"):
            move(team, 1, "Production", by="ann")
    assert team.stage("1.0.0") == "none"
    assert team.get("1.0.0").tags == tags


def test_a_transition_takes_the_right_to_promote(team: World) -> None:
    """Whoever may only read, or only register, is refused, also where nothing would move."""
    team.versions("1.0.0")
    for somebody in ("eve", "fay"):
        for word in ("Staging", "None"):
            with pytest.raises(errors.NotAllowed):
                move(team, 1, word, by=somebody)


def test_where_an_endpoint_follows_the_rollout_begins_and_is_named(sqlite_database: Database) -> None:
    """The stage follows the traffic: it has not moved yet, and the answer says by which rollout it will."""
    world = World(sqlite_database, ALONE, serving=True)
    world.versions("1.0.0", "1.1.0")
    move(world, 1, "Production")
    world.endpoint(stable=1)
    begun = move(world, 2, "Production")
    assert begun.version.stage == "none"
    assert begun.beside.rollout in world.traffic.rollouts
    world.succeed(begun.beside.rollout)
    assert stages(world, 2) == ["archived", "production"]


def test_what_is_to_be_moved_has_its_files_hashed(alone: World) -> None:
    """Nothing is hashed for a transition that goes nowhere, or by somebody who may not ask for it."""
    alone.versions("1.0.0")
    asked = Transition(ref=number(1), word="Staging")
    version = alone.read("owner", words.to_be_moved, asked)
    assert version is not None
    assert version.number == 1
    move(alone, 1, "Staging")
    assert alone.read("owner", words.to_be_moved, asked) is None
    with pytest.raises(errors.NotAllowed):
        alone.read("eve", words.to_be_moved, asked)


# --------------------------------------------------------------------------------------- latest of each stage


def test_the_latest_of_each_stage(alone: World) -> None:
    """One for each stage that has any, the highest number of each; all of them when none is named."""
    alone.versions("1.0.0", "1.1.0", "1.2.0", "1.3.0", "1.4.0")
    assert latest(alone) == [5]
    for value, word in ((1, "Archived"), (2, "Archived"), (3, "Production"), (4, "Staging")):
        move(alone, value, word)
    assert latest(alone) == [2, 3, 4, 5]
    assert latest(alone, "production", "NONE") == [3, 5]
    assert latest(alone, "Archived") == [2]
    move(alone, 4, "None")
    assert latest(alone, "Staging") == []
    assert latest(alone, "None") == [5]


def test_in_a_stages_place_a_client_may_put_a_version(alone: World) -> None:
    """`models:/churn/2.1.0` reaches the server so: a semver, a range, a number, `latest`."""
    alone.versions("1.0.0", "1.1.0", "2.0.0", "1.2.0")
    assert latest(alone, "1.1.0") == [2]
    assert latest(alone, "^1.0") == [4]
    assert latest(alone, "1.x") == [4]
    assert latest(alone, "3") == [3]
    assert latest(alone, "latest") == [4]
    assert latest(alone, "2.0.0", "None") == [3, 4]
    with pytest.raises(errors.VersionNotFound):
        latest(alone, "9.9.9")
    with pytest.raises(errors.InvalidParameter, match="one of None"):
        latest(alone, "Prod")
    with pytest.raises(errors.ModelNotFound):
        latest(alone, by="nobody")


@pytest.mark.differs("withdrawn")
def test_what_was_withdrawn_is_the_latest_of_nothing_shared(alone: World) -> None:
    """After a rollback `models:/churn/latest` must not bring back what was taken back."""
    alone.versions("1.0.0", "1.1.0", "1.2.0")
    move(alone, 1, "Production")
    move(alone, 2, "Production")
    alone.rollback(by="owner")
    assert stages(alone, 3) == ["production", "archived", "none"]
    assert latest(alone) == [1, 3]
    alone.do("owner", catalog_of(alone).yank, number(3), "wrong data")
    assert latest(alone) == [1]
    assert aliased(alone, "latest").number == 1


def test_stages_of_ones_own_are_shown_by_their_names(alone: World) -> None:
    """MLflow's words are for its four stages; any other has its own, in any case."""
    alone.model(stages=OWN_WORDS)
    alone.version("1.0.0")
    assert move(alone, 1, "shadow").version.stage == "Shadow"
    assert latest(alone, "SHADOW") == [1]
    assert [words.stage_word(spec.name) for spec in OWN_WORDS.stages] == ["new", "Shadow", "live"]


def test_a_models_page_is_read_in_a_bounded_number_of_statements(sqlite_database: Database) -> None:
    """As many for thirty models as for one."""
    world = World(sqlite_database, ALONE)
    names = [ModelName("default", f"model{n:02}") for n in range(30)]
    for name in names:
        world.model(name)
        world.version("1.0.0", name)
    listed = [model.id for model in world.read("owner", catalog_of(world).list_models).items]
    counted: list[int] = []
    for some in (listed[:1], listed):
        with world.database.statements() as seen:
            found = world.read("owner", reading.model_lines, some)
        assert [len(found[each].latest) for each in some] == [1] * len(some)
        counted.append(len(seen))
    assert counted == [3, 3]


def test_the_latest_of_a_stage_is_the_end_of_an_index(sqlite_database: Database) -> None:
    """Not a walk over all versions that were ever archived."""
    statement = standing.latest_in(1, unplaced=False)
    plan = sqlite_database.read(lambda tx: tx.explain(statement, ids=["m"], stage_0="archived"))
    assert "SEARCH place USING COVERING INDEX ix_occupancy_model_id_stage_number" in plan
    assert "TEMP B-TREE" not in plan


# ---------------------------------------------------------------------------------------------- names for one


@given(st.integers(1, 10**18 - 1))
def test_any_number_names_a_version(value: int) -> None:
    """A version's number is a text on the wire."""
    assert words.version_ref(CHURN, str(value)).selector == Numbered(value)


@given(st.text(max_size=30))
def test_no_other_text_names_one_by_number(text: str) -> None:
    """It is a whole number of at most 18 digits, or an exact semver, or refused by name."""
    try:
        found = words.version_ref(CHURN, text).selector
    except errors.InvalidParameter:
        assert not (text.isascii() and text.isdigit() and len(text) <= words.NUMBER_DIGITS_MAX)
        return
    if isinstance(found, Exact):
        assert str(semver.parse(text)) == found.version
    else:
        assert found == Numbered(int(text))
        assert text.isascii()


@pytest.mark.parametrize("alias", ["champion", "a_b-c", "v1x", "V", "2"])
def test_aliases_that_mlflow_has(alias: str) -> None:
    """Letters, digits, `_` and `-`."""
    assert words.check_alias(alias) == alias


@pytest.mark.parametrize("alias", ["", "a b", "v1", "V22", "ä", "a.b", "x/y", "a\n"])
def test_aliases_that_mlflow_refuses(alias: str) -> None:
    """Nothing that reads as a version, and no other mark."""
    with pytest.raises(errors.InvalidParameter) as refused:
        words.check_alias(alias)
    assert refused.value.details["field"] == "alias"


@pytest.mark.parametrize("key", ["modelkeep.semver", "modelkeep.", "modelkeep.anything"])
def test_nobody_sets_what_is_modelkeeps_own(key: str) -> None:
    """Its names are not to be had; names that only look alike are."""
    with pytest.raises(errors.InvalidParameter, match="Modelkeep's own"):
        refuse_own_tags(["team", key])
    refuse_own_tags(["modelkeep", "modelkeeper.x", "Modelkeep.x"])


def test_our_own_door_refuses_them_as_well(alone: World) -> None:
    """On a model, a version, or at birth."""
    alone.versions("1.0.0")
    catalog, own = catalog_of(alone), {"modelkeep.semver": "9.9.9"}
    file = FileEntry(path="model.onnx", size_bytes=3, digest=alone.get("1.0.0").digest)
    for act in (
        lambda: alone.do("owner", catalog.change_model, CHURN, ModelChange(set_tags=own)),
        lambda: alone.do("owner", catalog.change_version, number(1), ModelChange(delete_tags=tuple(own))),
        lambda: alone.do("owner", catalog.create_model, ModelName("default", "other"), tags=own),
        lambda: alone.do("owner", catalog.begin_draft, CHURN, DraftSpec(files=(file,), tags=own)),
    ):
        with pytest.raises(errors.InvalidParameter, match="Modelkeep's own"):
            act()


def test_latest_is_the_one_registered_last(alone: World) -> None:
    """Through this door the word has MLflow's meaning; there is none in a model without versions."""
    alone.model()
    with pytest.raises(errors.VersionNotFound):
        aliased(alone, "Latest")
    for text in ("2.0.0", "1.0.0"):
        alone.version(text)
    assert aliased(alone, "LATEST").semver == "1.0.0"
    with pytest.raises(errors.InvalidParameter, match="alias champion not found"):
        aliased(alone, "champion")


def test_a_move_is_when_a_version_last_changed(alone: World) -> None:
    """Both the one that came and the one that had to leave."""
    alone.versions("1.0.0", "1.1.0")
    move(alone, 1, "Staging")
    moved = alone.later(hours=1)
    move(alone, 2, "Staging")
    for value in (1, 2):
        [seen] = alone.read("owner", words.seen, [alone.read("owner", references.resolve, number(value))])
        assert seen.beside.updated_at == moved
