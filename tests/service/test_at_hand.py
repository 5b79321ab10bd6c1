"""What is prepared without waiting: the same as with it, or nothing."""

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Verb
from modelkeep.core.prompts import IS_PROMPT, PROMPT_TEXT
from modelkeep.core.values import parse_ref
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.service import at_hand, mlflow_registry
from modelkeep.service.act import Act
from modelkeep.service.at_hand import NotAtHand
from modelkeep.service.mlflow_registry import Transition
from modelkeep.service.sources import VersionRequest
from modelkeep.store import damage
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


def still_holds(world: SourcesWorld, word: str = "staging") -> bool | None:
    """Whether churn's first version may be moved as far as its files go, without waiting."""
    asked = Transition(ref=parse_ref("churn:1.0.0"), word=word)
    return world.catalog.still_holds(
        world.desk, OWNER, lambda act: mlflow_registry.to_be_moved(act, asked), waiting=False
    )


def test_it_is_the_same_as_what_is_waited_for(world: SourcesWorld) -> None:
    """For a run's files, and for a copy of a version."""
    run_id = world.run()
    world.keep(run_id, FILES)
    world.made(f"runs:/{run_id}/model")

    for source in (f"runs:/{run_id}/model", "models:/churn/1"):
        request = asked_for(source)
        waited = world.sources.prepare(world.desk, OWNER, request)
        assert world.sources.prepare(world.desk, OWNER, request, waiting=False) == waited
        assert waited.stored == {digest_of(data) for data in FILES.values()}


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
            world.sources.prepare(world.desk, OWNER, request, waiting=False)


def test_refusals_are_the_same(world: SourcesWorld) -> None:
    """What is not there is not there, whether the blobs are waited for or not."""
    with pytest.raises(errors.RunNotFound):
        world.sources.prepare(world.desk, OWNER, asked_for("runs:/abc/model"), waiting=False)
    with pytest.raises(errors.ModelNotFound):
        still_holds(world)


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
    """Right bytes are known to be right; a version that stands there already is not looked at."""
    run_id = world.run()
    world.keep(run_id, FILES)
    world.made(f"runs:/{run_id}/model")

    assert still_holds(world) is True
    assert still_holds(world, "none") is None


def test_marks_and_wrong_bytes_are_left_to_a_thread(world: SourcesWorld) -> None:
    """What they lead to is an event, or a mark that is taken away: writes, which are waited for."""
    run_id = world.run()
    world.keep(run_id, FILES)
    version = world.made(f"runs:/{run_id}/model")

    def mark(act: Act) -> None:
        damage.mark(act.tx, version.files[0].digest, act.now)

    world.do(OWNER, mark)
    with pytest.raises(NotAtHand):
        still_holds(world)
    assert world.catalog.files_verified(world.desk, OWNER, parse_ref("churn:1.0.0"), Verb.READ) is True
    assert still_holds(world) is True
    flip(world.blobs, FILES["model.skops"])
    with pytest.raises(NotAtHand):
        still_holds(world)
