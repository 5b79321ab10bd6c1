"""Bytes that were lost or damaged after they had been stored: no version is made of them, and sending them
again heals every version that names them.
"""

from collections.abc import Iterable

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.catalog import Draft, DraftSpec, Metric
from modelkeep.core.values import Digest, ModelName, parse_ref
from modelkeep.ports import BlobInfo
from modelkeep.service.act import Act
from modelkeep.service.catalog import Catalog
from modelkeep.store import damage
from tests.fakes import MemoryBlobs
from tests.service.catalog_world import CHURN, OWNER, World, context, digest_of, entry_of

pytestmark = pytest.mark.req("V3")

DATA = b"0123456789"
FILES = {"model.onnx": DATA, "labels.json": b"[]"}


def replace_blob(world: World, data: bytes, by: bytes) -> None:
    """Put other bytes where a blob lies, behind everybody's back."""
    _, at = world.blobs.disk.blobs[digest_of(data)]
    world.blobs.disk.blobs[digest_of(data)] = (by, at)


def to_send(draft: Draft) -> list[str]:
    """The files that a draft asks for."""
    return [entry.path for entry in draft.files if not entry.present]


def marked(world: World, data: bytes = DATA) -> bool:
    """Whether a content is remembered as damaged."""

    def among(act: Act) -> set[Digest]:
        return damage.damaged_among(act.tx, [digest_of(data)])

    return bool(world.read(OWNER, among))


def test_a_deleted_blob_is_asked_for_again_and_heals(world: World) -> None:
    """In another model, too: only what is gone is sent, and the version that had lost it is whole again."""
    world.register(files=FILES)
    world.blobs.delete(digest_of(DATA))

    draft = world.begin("fresh", FILES)
    assert to_send(draft) == ["model.onnx"]
    with pytest.raises(errors.Conflict, match=r"model\.onnx"):
        world.do(OWNER, world.catalog.finalize, draft.id)
    world.send(draft, FILES)

    assert world.do(OWNER, world.catalog.finalize, draft.id).created
    assert world.catalog.fsck(world.desk, OWNER).ok
    assert world.catalog.verify(world.desk, OWNER, parse_ref("churn:1.0.0")).ok


@pytest.mark.parametrize("whole", [True, False], ids=["fsck", "verify"])
def test_a_flipped_bit_that_was_found_is_healed_by_the_next_upload(world: World, whole: bool) -> None:
    """Registering the very same again is no new version, and yet brings the bytes."""
    world.register(files=FILES)
    replace_blob(world, DATA, b"1123456789")
    if whole:
        assert not world.catalog.fsck(world.desk, OWNER).ok
    else:
        assert not world.catalog.verify(world.desk, OWNER, parse_ref("churn:1.0.0")).ok
    assert marked(world)

    draft = world.begin(CHURN, FILES)
    assert to_send(draft) == ["model.onnx"]
    world.send(draft, FILES)
    again = world.do(OWNER, world.catalog.finalize, draft.id)

    assert (again.created, again.version.semver) == (False, "1.0.0")
    assert not marked(world)
    assert world.catalog.fsck(world.desk, OWNER).ok
    assert to_send(world.begin("other", FILES)) == []


def test_a_blob_of_another_size_counts_as_absent(world: World) -> None:
    """A file that was cut short is noticed without reading it, and before any check ran."""
    world.register(files=FILES)
    replace_blob(world, DATA, DATA[:4])

    assert to_send(world.begin("fresh", FILES)) == ["model.onnx"]


def test_a_restored_blob_is_believed_again_once_it_was_read(world: World) -> None:
    """Whoever puts the right bytes back from a backup need not send them: the next check clears the mark."""
    world.register(files=FILES)
    replace_blob(world, DATA, b"1123456789")
    world.catalog.fsck(world.desk, OWNER)
    replace_blob(world, DATA, DATA)
    assert to_send(world.begin("fresh", FILES)) == ["model.onnx"]

    assert world.catalog.fsck(world.desk, OWNER).ok

    assert not marked(world)
    assert to_send(world.begin("other", FILES)) == []


@pytest.mark.parametrize("how", ["deleted", "cut", "found damaged"])
def test_a_version_is_not_made_of_bytes_lost_in_between(world: World, how: str) -> None:
    """Finalizing names the files, the same draft takes them again, and then it is a version."""
    world.register(files=FILES)
    more = {**FILES, "extra.bin": b"extra"}
    draft = world.begin(CHURN, more)
    world.send(draft, more)
    match how:
        case "deleted":
            world.blobs.delete(digest_of(DATA))
        case "cut":
            replace_blob(world, DATA, b"")
        case _:
            replace_blob(world, DATA, b"1123456789")
            assert not world.catalog.fsck(world.desk, OWNER).ok

    with pytest.raises(errors.Conflict, match=r"send model\.onnx first") as refusal:
        world.do(OWNER, world.catalog.finalize, draft.id)

    assert refusal.value.details["missing"] == ["model.onnx"]
    left = world.read(OWNER, world.catalog.get_draft, draft.id)
    assert (to_send(left), left.files[-1].offset) == (["model.onnx"], 0)
    world.send(left, more)
    assert world.do(OWNER, world.catalog.finalize, draft.id).created
    assert world.catalog.fsck(world.desk, OWNER).ok


def test_bytes_sent_and_lost_are_asked_for_by_the_same_announcement(world: World) -> None:
    """Saying it again after a break finds the same draft, with what is really there."""
    draft = world.begin(CHURN, FILES)
    world.send(draft, FILES)
    world.blobs.delete(digest_of(b"[]"))

    again = world.begin(CHURN, FILES)

    assert (again.id, to_send(again)) == (draft.id, ["labels.json"])


class Counting(MemoryBlobs):
    """A blob store that notes what it is asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(world.blobs.disk)
        self.asked: list[Digest] = []

    def stat(self, digest: Digest) -> BlobInfo | None:
        self.asked.append(digest)
        return super().stat(digest)


def announced(files: Iterable[tuple[str, bytes]]) -> DraftSpec:
    """An announcement of files."""
    return DraftSpec(files=tuple(entry_of(*file) for file in files), metrics=(Metric(name="auc", value=1),))


def test_the_look_before_an_act_is_the_only_one(world: World) -> None:
    """It asks for what the rows believe in, once; the act itself does not ask, for a bucket may
    be slow."""
    world.register(files=FILES)
    blobs = Counting(world)
    catalog = Catalog(blobs, world.desk)
    spec = announced([*FILES.items(), ("new.bin", b"new")])

    stored = catalog.announced_blobs(world.desk, OWNER, CHURN, spec)
    assert stored == {digest_of(data) for data in FILES.values()} == set(blobs.asked)
    draft = world.do(OWNER, catalog.begin_draft, CHURN, spec, stored)
    world.send(draft, {"new.bin": b"new"})
    there = catalog.draft_blobs(world.desk, OWNER, draft.id)
    assert len(blobs.asked) == 5
    assert world.do(OWNER, catalog.finalize, draft.id, there).created
    assert len(blobs.asked) == 5


def test_the_look_tells_nobody_what_others_keep(world: World) -> None:
    """It needs the rights that registering needs, and knows only what the caller may pull."""
    world.register("secret/model", files=FILES)
    eve = context("eve", Role.CONTRIBUTOR, project="open")
    spec = announced(FILES.items())

    assert world.catalog.announced_blobs(world.desk, eve, ModelName("open", "m"), spec) == frozenset()
    with pytest.raises(errors.ModelNotFound):
        world.catalog.announced_blobs(world.desk, eve, ModelName("secret", "model"), spec)
    draft = world.begin(CHURN, FILES)
    with pytest.raises(errors.DraftNotFound):
        world.catalog.draft_blobs(world.desk, eve, draft.id)
