"""What is prepared without waiting: the same as with it, or nothing."""

import pytest
from msgspec.structs import replace

from modelkeep.core import errors
from modelkeep.core.access import Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.prompts import IS_PROMPT, PROMPT_TEXT
from modelkeep.core.values import parse_ref
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.service import at_hand
from modelkeep.service.act import Act
from modelkeep.service.at_hand import NotAtHand
from modelkeep.service.sources import VersionRequest
from modelkeep.store import catalog, damage
from modelkeep.store.database import Database
from tests.fakes import MemoryBlobs
from tests.service.catalog_world import CHURN, OWNER, digest_of, entry_of
from tests.service.sources_world import FILES, SourcesWorld

pytestmark = pytest.mark.req("T2", "V3")


@pytest.fixture
def world(database: Database) -> SourcesWorld:
    """A registry and tracking, both empty."""
    return SourcesWorld(database)


def flip(blobs: MemoryBlobs, data: bytes) -> None:
    """Change one bit of a stored blob behind everybody's back."""
    stored, at = blobs.disk.blobs[digest_of(data)]
    blobs.disk.blobs[digest_of(data)] = (bytes([stored[0] ^ 1]) + stored[1:], at)


def asked_for(source: str, tags: dict[str, str] | None = None) -> VersionRequest:
    """A version of churn from there."""
    return VersionRequest(model=CHURN, source=source, create_model=True, tags=tags or {})


def holds(world: SourcesWorld, number: int = 1) -> bool:
    """Whether the files of a version of churn are right, as far as that is at hand."""

    def look(act: Act) -> bool:
        return world.catalog.look_at_hand(act, catalog.get_version(act.tx, CHURN, number))()

    return world.do(OWNER, look)


def register(world: SourcesWorld, request: VersionRequest) -> ModelVersion:
    """The version that is made without preparing it."""
    return world.do(OWNER, world.sources.register_at_hand, request).version


def test_it_is_the_same_as_what_was_prepared(world: SourcesWorld) -> None:
    """For a run's files, for a logged model's and for a copy of a version: all but the number and what comes
    of it."""
    run_id = world.run()
    world.keep(run_id, FILES)
    model_id = world.logged(run_id, name="logged")
    world.made(f"runs:/{run_id}/model")

    for source in (f"runs:/{run_id}/model", f"models:/{model_id}", "models:/churn/1"):
        request = asked_for(source, tags={"team": "risk"})
        prepared = world.sources.prepare(world.desk, OWNER, request)
        known = world.do(OWNER, world.sources.register, prepared).version
        made = register(world, request)
        own = {"id": "", "number": 0, "semver": "", "parent": None, "created_at": known.created_at}
        own |= {"bump_reasons": (), "tags": {}}
        assert replace(made, **own) == replace(known, **own)
        assert made.number == known.number + 1
        assert made.tags.keys() == known.tags.keys()


def test_a_model_is_made_with_it(world: SourcesWorld) -> None:
    """Where the request says so."""
    run_id = world.run()
    world.keep(run_id, FILES)

    assert register(world, asked_for(f"runs:/{run_id}/model")).reference == "churn:1.0.0"


def test_nothing_is_at_hand_that_would_not_be_taken(world: SourcesWorld) -> None:
    """Whoever waits finds out what is wrong; so it is with prompts, which have to be written first."""
    run_id = world.run()
    world.keep(run_id, FILES)
    flip(world.blobs, FILES["model.skops"])
    prompt = {IS_PROMPT: "true", PROMPT_TEXT: "Say it."}

    for request in (
        asked_for(f"runs:/{run_id}/model"),
        asked_for("prompt-template", tags=prompt),
    ):
        with pytest.raises(NotAtHand):
            register(world, request)


def test_refusals_are_the_same(world: SourcesWorld) -> None:
    """What is not there is not there, prepared or not."""
    with pytest.raises(errors.RunNotFound):
        register(world, asked_for("runs:/abc/model"))
    with pytest.raises(errors.ModelNotFound):
        register(world, VersionRequest(model=CHURN, source="runs:/abc/model"))


@pytest.mark.parametrize(
    "sizes",
    [[1] * (at_hand.FILES_MAX + 1), [SMALL_MAX_BYTES] * 5, [SMALL_MAX_BYTES + 1]],
    ids=["many", "much", "large"],
)
def test_what_takes_long_is_left_to_a_thread(sizes: list[int]) -> None:
    """Many files, many bytes together, and a file that is not small."""
    blobs = MemoryBlobs()
    files = {f"file-{index}": bytes([index]) * size for index, size in enumerate(sizes)}
    for data in files.values():
        blobs.begin("upload")
        blobs.append("upload", 0, [data])
        blobs.commit("upload", digest_of(data))
    entries = [entry_of(path, data) for path, data in files.items()]

    with pytest.raises(NotAtHand):
        at_hand.contents(blobs, entries)


def test_a_version_that_is_to_move_is_hashed_at_once(world: SourcesWorld) -> None:
    """Right bytes are known to be right within the act."""
    run_id = world.run()
    world.keep(run_id, FILES)
    world.made(f"runs:/{run_id}/model")

    assert holds(world)


def test_marks_and_wrong_bytes_are_left_to_a_thread(world: SourcesWorld) -> None:
    """What they lead to is an event, or a mark that is taken away: writes, which are waited for."""
    run_id = world.run()
    world.keep(run_id, FILES)
    version = world.made(f"runs:/{run_id}/model")

    def mark(act: Act) -> None:
        damage.mark(act.tx, version.files[0].digest, act.now)

    world.do(OWNER, mark)
    with pytest.raises(NotAtHand):
        holds(world)
    assert world.catalog.files_verified(world.desk, OWNER, parse_ref("churn:1.0.0"), Verb.READ) is True
    assert holds(world)
    flip(world.blobs, FILES["model.skops"])
    with pytest.raises(NotAtHand):
        holds(world)
