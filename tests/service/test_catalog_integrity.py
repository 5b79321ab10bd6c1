"""Stored bytes, read again: a version, and everything; what is broken is found, told, and recorded."""

import pytest

from modelkeep.core import codec, errors
from modelkeep.core.access import Role, Verb
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.events import Event, EventKind
from modelkeep.core.values import parse_ref
from modelkeep.service.act import Act
from tests.fakes import MemoryBlobs
from tests.service.catalog_world import CHURN, OWNER, World, context, digest_of

pytestmark = pytest.mark.req("V3")

FILES = {"model.onnx": b"0123456789", "labels.json": b"[]"}


def flip(blobs: MemoryBlobs, data: bytes) -> None:
    """Change one bit of a stored blob behind everybody's back."""
    digest = digest_of(data)
    stored, at = blobs.disk.blobs[digest]
    blobs.disk.blobs[digest] = (bytes([stored[0] ^ 1]) + stored[1:], at)


def failures(world: World) -> list[Event]:
    """The events of broken bytes."""
    found = world.read(OWNER, lambda act: act.tx.events.after(kind=EventKind.INTEGRITY_FAILED))
    return [entry.event for entry in found]


def test_what_is_whole_is_said_to_be_whole(world: World) -> None:
    """Every file was read, nothing is recorded."""
    version = world.register(files=FILES).version
    ref = parse_ref("churn:1.0.0")

    report = world.catalog.verify(world.desk, OWNER, ref)

    assert report.ok
    assert (report.version, report.digest, report.files, report.size_bytes) == (
        "churn:1.0.0",
        version.digest,
        2,
        12,
    )
    assert world.catalog.files_verified(world.desk, OWNER, ref, Verb.READ) is True
    assert failures(world) == []


def test_a_flipped_bit_is_found_and_recorded(world: World) -> None:
    """By the check of the version and by that of everything, each with path and both digests."""
    world.register(files=FILES)
    flip(world.blobs, b"0123456789")
    ref = parse_ref("churn:1.0.0")

    report = world.catalog.verify(world.desk, OWNER, ref)

    assert not report.ok
    (problem,) = report.problems
    assert (problem.path, problem.problem, problem.digest) == (
        "model.onnx",
        "damaged",
        digest_of(b"0123456789"),
    )
    assert problem.actual == digest_of(b"1123456789")
    (event,) = failures(world)
    assert (event.subject, event.model, event.number) == ("churn:1.0.0", "churn", 1)
    assert event.body["files"][0]["path"] == "model.onnx"
    assert world.catalog.files_verified(world.desk, OWNER, ref, Verb.READ) is False
    everything = world.catalog.fsck(world.desk, OWNER)
    assert (everything.ok, everything.damaged, everything.missing) == (False, 1, 0)
    assert everything.problems[0].versions == ("churn:1.0.0",)
    assert len(failures(world)) == 3


def test_everything_is_checked_once_and_what_dangles_is_counted(world: World) -> None:
    """A file in two versions is read once; a missing one is named with both; a blob that only an open draft
    names is needed, and one that nobody names is room to be had."""
    world.register("a", files={"m": b"shared", "x": b"x"})
    world.register("b", files={"m": b"shared", "y": b"y"})
    draft = world.begin("c", {"m": b"draft"})
    world.send(draft, {"m": b"draft"})
    abandoned = world.begin("d", {"m": b"left"})
    world.send(abandoned, {"m": b"left"})
    world.do(OWNER, world.catalog.cancel_draft, abandoned.id)

    report = world.catalog.fsck(world.desk, OWNER)
    assert report.ok
    assert (report.versions, report.blobs, report.size_bytes) == (2, 3, 8)
    assert (report.dangling, report.dangling_bytes) == (1, 4)
    assert report.dangling_blobs[0].digest == digest_of(b"left")

    world.blobs.delete(digest_of(b"shared"))
    broken = world.catalog.fsck(world.desk, OWNER)
    assert (broken.missing, broken.damaged, broken.ok) == (1, 0, False)
    assert broken.problems[0].versions == ("a:1.0.0", "b:1.0.0")
    assert {event.subject for event in failures(world)} == {"a:1.0.0", "b:1.0.0"}


def test_a_list_of_files_that_was_changed_is_found(world: World) -> None:
    """Not only bytes are checked: the version's row and its list of files must give the same digest."""
    from sqlalchemy import bindparam, update

    from modelkeep.store.schema import versions

    version = world.register(files=FILES).version
    forged = codec.decode(codec.encode(version).replace(b"labels.json", b"lapels.json"), ModelVersion)

    def forge(act: Act) -> None:
        statement = (
            update(versions).where(versions.c.id == bindparam("which")).values(document=bindparam("text"))
        )
        act.tx.run(statement, which=version.id, text=codec.encode(forged).decode())

    world.do(OWNER, forge)

    report = world.catalog.verify(world.desk, OWNER, parse_ref("churn:1.0.0"))
    assert [(problem.path, problem.problem) for problem in report.problems] == [(None, "damaged")]
    everything = world.catalog.fsck(world.desk, OWNER)
    assert [(problem.path, problem.versions) for problem in everything.problems] == [(None, ("churn:1.0.0",))]


class Unreachable(MemoryBlobs):
    """A blob store that does not answer."""

    def verify(self, digest: object) -> object:  # type: ignore[override]
        raise errors.BlobsUnavailable("The bucket does not answer.")


def test_what_cannot_be_read_is_neither_whole_nor_broken(world: World) -> None:
    """The gates get None, which never promotes; whoever asks directly gets the error; nothing is recorded."""
    from modelkeep.service.catalog import Catalog

    world.register(files=FILES)
    catalog = Catalog(Unreachable(world.blobs.disk), world.desk)
    ref = parse_ref("churn:1.0.0")

    assert catalog.files_verified(world.desk, OWNER, ref, Verb.READ) is None
    with pytest.raises(errors.BlobsUnavailable):
        catalog.verify(world.desk, OWNER, ref)
    assert failures(world) == []


def test_only_admins_check_everything(world: World) -> None:
    """It reads every byte of every project; one's own version anybody may check."""
    world.register()
    bob = context("bob", Role.CONTRIBUTOR)

    with pytest.raises(errors.NotAllowed, match="administer"):
        world.catalog.fsck(world.desk, bob)
    assert world.catalog.verify(world.desk, bob, parse_ref("churn:1.0.0")).ok
    with pytest.raises(errors.NotAllowed, match="promote"):
        world.catalog.files_verified(world.desk, bob, parse_ref("churn:1.0.0"), Verb.PROMOTE)


def test_files_are_handed_to_those_who_may_pull(world: World) -> None:
    """An auditor sees the list and not the bytes; an unknown path names those there are."""
    world.register(files=FILES)
    ref, auditor = parse_ref("churn:1.0.0"), context("aud", Role.AUDITOR)

    assert [entry.path for entry in world.read(auditor, world.catalog.manifest, ref).files] == sorted(FILES)
    with pytest.raises(errors.NotAllowed, match="pull"):
        world.read(auditor, world.catalog.open_file, ref, "model.onnx")
    assert world.read(OWNER, world.catalog.open_file, ref, "model.onnx").size_bytes == 10
    with pytest.raises(errors.FileNotInVersion, match=r"labels\.json"):
        world.read(OWNER, world.catalog.open_file, ref, "../model.onnx")


@pytest.mark.req("V9", "V10")
def test_versions_are_compared_where_they_are(world: World) -> None:
    """Side by side, as a diff, and the best of those that a filter selects."""
    from modelkeep.core.catalog import Metric

    for index, value in enumerate((0.8, 0.9, 0.7)):
        tags = {"kind": "old" if index == 0 else "new"}
        world.register(data=b"%d" % index, metrics=(Metric(name="auc", value=value),), tags=tags)

    table = world.read(OWNER, world.catalog.compare, CHURN, metrics=("auc",))
    assert [cell.value for cell in table.metrics[0].cells] == [0.8, 0.9, 0.7]
    two = world.read(OWNER, world.catalog.compare, CHURN, refs=(parse_ref("churn:#3"), parse_ref("churn:#1")))
    assert [column.number for column in two.versions] == [1, 3]
    best = world.read(OWNER, world.catalog.best, CHURN, "auc", filter_text='tags.kind = "old"')
    assert best.best.number == 1
    assert world.read(OWNER, world.catalog.best, CHURN, "auc", direction="lower").best.number == 3
    diff = world.read(OWNER, world.catalog.diff, parse_ref("churn:#1"), parse_ref("churn:#2"))
    assert [(metric.before, metric.after) for metric in diff.metrics] == [(0.8, 0.9)]
    with pytest.raises(errors.VersionNotFound, match="filter"):
        world.read(OWNER, world.catalog.best, CHURN, "auc", filter_text="number > 9")
    measured = Metric(name="auc", value=0.6, split="test")
    world.register(data=b"split", metrics=(measured,))
    label = measured.label
    found = world.read(OWNER, world.catalog.search_versions, filter_text=f"metrics.{label} < 0.7")
    assert (label, [version.number for version in found.items]) == ("auc@test", [4])
    assert world.read(OWNER, world.catalog.best, CHURN, label).best.number == 4
    assert world.read(OWNER, world.catalog.compare, CHURN, metrics=(label,)).metrics[0].name == label
    with pytest.raises(errors.InvalidReference):
        world.read(OWNER, world.catalog.compare, CHURN, refs=(parse_ref("other:1.0.0"),))
