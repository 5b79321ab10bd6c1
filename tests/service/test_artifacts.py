"""Artifacts on both databases: folders, room, what a version is made of, and which bytes are needed."""

from collections.abc import Iterable
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from modelkeep.core import errors
from modelkeep.core.access import Caller, Role
from modelkeep.core.tracking import Artifact
from modelkeep.core.values import ModelName
from modelkeep.ports import SMALL_MAX_BYTES
from modelkeep.service.act import Act
from modelkeep.service.artifacts import (
    PRESUMED_S,
    Artifacts,
    OwnedPlace,
    Owner,
    Place,
    VersionPlace,
    address_of,
    check_artifact_path,
    parse_place,
)
from modelkeep.service.catalog import Catalog
from modelkeep.store import artifacts, inventory
from modelkeep.store.artifacts import OwnerKind, OwnerRow
from modelkeep.store.database import Database
from modelkeep.store.tracking_tables import artifact_owners
from tests.fakes import MemoryBlobs, digest_of
from tests.service.tracking_world import TrackingWorld

pytestmark = pytest.mark.req("T1")


class ArtifactWorld(TrackingWorld):
    """A tracking world whose runs keep files in memory."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.blobs = MemoryBlobs()
        self.artifacts = Artifacts(self.blobs)

    def place(self, run: str, path: str = "") -> OwnedPlace:
        """A place of a run."""
        return OwnedPlace(owner=Owner(OwnerKind.RUN, run), path=path)

    def put(self, run: str, path: str, data: bytes, who: str = "") -> Artifact:
        """Send a file."""
        plan = self.read(self.artifacts.prepare, self.place(run, path), len(data), who=who)
        plan = self.artifacts.finish(self.artifacts.store_bytes(plan, 0, [data]))
        return self.do(self.artifacts.note, plan, who=who)

    def names(self, run: str, folder: str = "") -> list[str]:
        """What a folder has, folders with a slash."""
        found = self.read(self.artifacts.list_folder, self.place(run, folder))
        return [child.name + "/" * (child.size_bytes is None) for child in found]

    def counted(self, run: str) -> tuple[int, int]:
        """Files and bytes as the counter has them, and as the rows do: they must agree."""

        def count(act: Act) -> tuple[int, int]:
            row = artifacts.find_owner(act.tx, OwnerKind.RUN, run)
            assert row is not None
            kept = act.tx.one(artifact_owners.select().where(artifact_owners.c.owner == row.serial)) or (
                0,
                0,
                0,
                0,
            )
            files = artifacts.under(act.tx, row, "", 10_000)
            assert (kept[2], kept[3]) == (len(files), sum(file.size_bytes for file in files))
            return kept[2], kept[3]

        return self.read(count)


@pytest.fixture
def kept(database: Database) -> ArtifactWorld:
    """An empty installation on each database."""
    return ArtifactWorld(database)


def test_files_are_written_replaced_and_deleted(kept: ArtifactWorld) -> None:
    """The counter of files and bytes is what the rows are, whatever happens to them."""
    run = kept.run()
    for path, data in (("a/x", b"1"), ("a/y", b"22"), ("b", b"333"), ("a/x", b"4444"), ("a.b", b"")):
        kept.put(run, path, data)
    assert kept.counted(run) == (4, 9)
    assert kept.names(run) == ["a/", "a.b", "b"]
    assert kept.do(kept.artifacts.delete, kept.place(run, "a")) == 2
    assert kept.do(kept.artifacts.delete, kept.place(run, "a")) == 0
    assert kept.counted(run) == (2, 3)
    assert kept.do(kept.artifacts.delete, kept.place(run)) == 2
    assert kept.counted(run) == (0, 0)


def test_a_folder_is_read_in_few_steps(kept: ArtifactWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large folders inside are skipped, and nothing at the edges of a batch is lost or told twice."""
    monkeypatch.setattr(artifacts, "BATCH", 3)
    run = kept.run()
    deep = ["n/1/2", "n/1/3", "n/1/4", "n/1/5", "n/2"]
    _write(kept, run, [*(f"m/{n}" for n in range(10)), *deep, "m.x", "m0", "l", "z"])
    assert kept.names(run) == ["l", "m/", "m.x", "m0", "n/", "z"]
    assert kept.names(run, "m") == [str(n) for n in range(10)]
    assert kept.names(run, "n") == ["1/", "2"]
    assert kept.names(run, "l") == []


def _write(kept: ArtifactWorld, run: str, paths: Iterable[str]) -> None:
    def write(act: Act) -> None:
        owner = artifacts.find_owner(act.tx, OwnerKind.RUN, run)
        assert owner is not None
        for path in paths:
            before = artifacts.get(act.tx, owner, path)
            file = Artifact(path=path, size_bytes=1, digest=digest_of(b"x"))
            artifacts.put(act.tx, owner, file, before, 1, None)

    kept.do(write)


NAMES = st.text("ab./0\u00fc\U0010ffff-", min_size=1, max_size=4).filter(
    lambda name: name.strip("./") and "/" not in name and name[-1] != "."
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each has a new run
@given(paths=st.sets(PATHS, max_size=25), folder=PATHS)
def test_folders_are_what_the_paths_say(sqlite_database: Database, paths: set[str], folder: str) -> None:
    """For any set of paths, a folder has exactly the first names below it, each once."""
    kept = ArtifactWorld(sqlite_database)
    run = kept.run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "BATCH", 2)
        _write(kept, run, paths)
        for start in ("", folder):
            below = [path[len(start) + 1 :] if start else path for path in paths
                     if not start or path.startswith(start + "/")]  # fmt: skip
            wanted = {name.partition("/")[0] for name in below}
            found = kept.read(kept.artifacts.list_folder, kept.place(run, start))
            assert {child.name for child in found} == wanted
            whole = kept.read(lambda act, at=start: _under(act, run, at))
            assert whole == sorted(
                (path for path in paths if not start or path.startswith(start + "/")), key=str.encode
            )


def _under(act: Act, run: str, folder: str) -> list[str]:
    owner = artifacts.find_owner(act.tx, OwnerKind.RUN, run)
    assert owner is not None
    return [file.path for file in artifacts.under(act.tx, owner, folder, 1_000)]


@pytest.mark.req("V4")
def test_what_a_version_is_made_of(kept: ArtifactWorld) -> None:
    """The files below a folder, by paths that begin there, with sizes, digests and kinds; or one file."""
    run = kept.run()
    for path in ("model/MLmodel", "model/data/weights.onnx", "modelx/other", "plot.png"):
        kept.put(run, path, path.encode())
    owner = Owner(OwnerKind.RUN, run)
    found = kept.read(kept.artifacts.manifest_of, owner, "model")
    assert [(file.path, file.size_bytes, file.digest) for file in found] == [
        ("MLmodel", 13, digest_of(b"model/MLmodel")),
        ("data/weights.onnx", 23, digest_of(b"model/data/weights.onnx")),
    ]
    assert [file.path for file in kept.read(kept.artifacts.manifest_of, owner, "plot.png")] == ["plot.png"]
    assert len(kept.read(kept.artifacts.manifest_of, owner)) == 4
    with pytest.raises(errors.ArtifactNotFound):
        kept.read(kept.artifacts.manifest_of, owner, "mod")
    with pytest.raises(errors.InvalidParameter):
        kept.read(kept.artifacts.manifest_of, owner, "../model")
    with pytest.raises(errors.RunNotFound):
        kept.read(kept.artifacts.manifest_of, Owner(OwnerKind.RUN, "f" * 32), "model")


@pytest.mark.req("G10")
def test_rights(kept: ArtifactWorld) -> None:
    """Who may not read a project finds no run there; who may only read changes nothing."""
    run = kept.run(kept.experiment("e", "own").experiment_id)
    kept.put(run, "a", b"x")
    viewer, stranger = kept.person("viewer", Role.VIEWER, "own"), kept.person("stranger", Role.ADMIN, "other")
    place = kept.place(run, "a")
    assert kept.read(kept.artifacts.open_file, place, who=viewer).size_bytes == 1
    with pytest.raises(errors.NotAllowed):
        kept.put(run, "b", b"x", who=viewer)
    with pytest.raises(errors.NotAllowed):
        kept.do(kept.artifacts.delete, place, who=viewer)
    for verb in (kept.artifacts.open_file, kept.artifacts.list_folder, kept.artifacts.delete):
        with pytest.raises(errors.RunNotFound):
            kept.do(verb, place, who=stranger)


def test_a_run_that_is_deleted_while_bytes_come(kept: ArtifactWorld) -> None:
    """What came is not noted then: the rule holds when the artifact is made, not only when it begins."""
    run = kept.run()
    plan = kept.read(kept.artifacts.prepare, kept.place(run, "a"))
    plan = kept.artifacts.finish(kept.artifacts.store_bytes(plan, 0, [b"x"]))
    kept.do(kept.tracking.delete_run, run)
    with pytest.raises(errors.InvalidState):
        kept.do(kept.artifacts.note, plan)
    assert kept.names(run) == []


@pytest.mark.req("V3")
def test_the_bytes_of_artifacts_are_needed_and_checked(kept: ArtifactWorld) -> None:
    """A check of everything reads them, names who keeps a damaged one, and counts none as left over."""
    run = kept.run()
    kept.put(run, "a/b", b"damaged")
    kept.put(run, "c", b"fine")
    kept.put(run, "d", b"gone")
    kept.do(kept.artifacts.delete, kept.place(run, "d"))
    digest = digest_of(b"damaged")
    kept.blobs.disk.blobs[digest] = (b"other", kept.blobs.disk.blobs[digest][1])
    report = Catalog(kept.blobs, kept.desk).fsck(kept.desk, kept._people[""])
    assert (report.ok, report.blobs, report.damaged, report.dangling) == (False, 2, 1, 1)
    assert report.problems[0].artifacts == (f"runs:/{run}/a/b",)
    assert report.problems[0].versions == ()
    assert report.dangling_blobs[0].digest == digest_of(b"gone")
    kept.put(run, "a/b", b"damaged")
    assert Catalog(kept.blobs, kept.desk).fsck(kept.desk, kept._people[""]).ok


def test_everything_is_found_by_an_index(kept: ArtifactWorld) -> None:
    """No read of artifacts looks at rows of others."""
    row = OwnerRow(OwnerKind.RUN, 1, "r", 0, 0, "default", 0)

    def explained(act: Act) -> list[str]:
        of = {"kind": row.kind.value, "owner": row.serial}
        return [
            act.tx.explain(artifacts._GET, **of, path="a"),
            act.tx.explain(artifacts._FROM, **of, first="a/", before="a0", limit=10),
            *(
                act.tx.explain(
                    finding[2], id="r", path="a", parents=["a", "b"], first="a/", before="a0", digest="x"
                )
                for finding in artifacts._FIND.values()
            ),
            act.tx.explain(inventory._IN_ARTIFACTS, digests=["x"]),
            act.tx.explain(inventory._KEEPERS, digest="x", limit=10),
        ]

    for plan in kept.read(explained):
        assert "SCAN artifacts" not in plan, plan
        assert "SCAN damaged_blobs" not in plan, plan


def test_an_upload_asks_little(kept: ArtifactWorld) -> None:
    """One statement says whether a file may come; one more comes before two writes; a
    download takes one."""
    run = kept.run()
    kept.put(run, "a/b", b"1")
    with kept.database.statements() as seen:
        plan = kept.read(kept.artifacts.prepare, kept.place(run, "a/c"), 1)
    assert len(seen) == 1
    plan = kept.artifacts.finish(kept.artifacts.store_bytes(plan, 0, [b"2"]))
    with kept.database.statements() as seen:
        kept.do(kept.artifacts.note, plan)
    assert len(seen) == 3
    with kept.database.statements() as seen:
        kept.read(kept.artifacts.open_file, kept.place(run, "a/c"))
    assert len(seen) == 1


def test_one_more_small_file_is_presumed_to_be_allowed(kept: ArtifactWorld) -> None:
    """After a file, the same caller's next small one for the same run is not asked about for a moment;
    anything else is, and what has become wrong is refused all the same when it is noted."""
    run, caller, now = kept.run(), kept._people[""].caller, kept.desk.clock()
    place = kept.place(run, "a/2")

    def presumed(
        caller: Caller = caller, place: Place = place, size: int | None = 1, later: float = 0.0
    ) -> bool:
        at = now + timedelta(seconds=later)
        return kept.artifacts.presume(caller, at, place, size, None) is not None

    assert not presumed()
    kept.put(run, "a/1", b"1")
    now = kept.desk.clock()
    assert presumed()
    assert not presumed(caller=structs.replace(caller, owner=False))
    assert not presumed(place=kept.place(kept.run(), "a/2"))
    assert not presumed(place=VersionPlace(model=ModelName("default", "m"), number=1, path="a"))
    assert not presumed(size=None)
    assert not presumed(size=SMALL_MAX_BYTES + 1)
    assert not presumed(later=PRESUMED_S)
    for wrong, error in (("", errors.InvalidParameter), ("a", errors.InvalidParameter)):
        plan = kept.artifacts.presume(caller, now, kept.place(run, wrong), 1, None)
        assert plan is not None
        plan = kept.artifacts.finish(kept.artifacts.store_bytes(plan, 0, [b"2"]))
        with pytest.raises(error):
            kept.do(kept.artifacts.note, plan)


@pytest.mark.parametrize(
    "text",
    ["0/" + "a" * 32 + "/artifacts", "12/" + "b" * 32 + "/artifacts/x/y",
     "0/models/m-" + "0" * 32 + "/artifacts/x",
     "registered-models/own/My Model/3/model.bin", "registered-models/own/churn/12"],
)  # fmt: skip
def test_an_address_is_read_and_printed(text: str) -> None:
    """What is read is what is printed."""
    assert address_of(parse_place(text)) == text
    assert isinstance(parse_place(text), VersionPlace) == text.startswith("registered")


@given(st.text(max_size=30))
def test_a_path_is_taken_as_it_is_or_refused(text: str) -> None:
    """No path is changed on its way in."""
    try:
        assert check_artifact_path(text) == text
    except errors.InvalidParameter:
        return
    assert all(part not in ("", ".", "..") for part in text.split("/"))
    assert not set(text) & set("\\:\0")
