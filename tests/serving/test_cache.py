"""The local copy of versions: only right bytes get in, changed bytes do not get out, and its size is
bounded."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelkeep.core import errors
from modelkeep.core.values import Digest
from modelkeep.serving import cache
from modelkeep.serving.cache import Cache, verify
from tests.serving import models

FILES = {"model.onnx": b"weights" * 1000, "sub/readme.md": b"hello"}
SPEC = models.spec(FILES, "1.0.0")
BLOBS = models.blobs(FILES)


def fetch(digest: Digest) -> Iterator[bytes]:
    """The right bytes in two pieces."""
    yield BLOBS[digest][:3]
    yield BLOBS[digest][3:]


def nothing(digest: Digest) -> Iterator[bytes]:
    """A control plane that is away."""
    raise errors.ServerUnavailable("away")
    yield b""


@pytest.mark.req("S1")
def test_a_version_is_fetched_once_and_served_offline_after(tmp_path: Path) -> None:
    """Files arrive under their paths, readable by their owner alone; a second start needs nobody."""
    folder = Cache(tmp_path).prepare(SPEC, fetch)
    assert {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    } == FILES
    assert (folder / "model.onnx").stat().st_mode & 0o777 == 0o400
    assert Cache(tmp_path).prepare(SPEC, nothing) == folder
    assert verify(SPEC, folder) == FILES


def test_wrong_bytes_never_get_in(tmp_path: Path) -> None:
    """Other bytes, too few, too many: nothing is left of them."""
    for wrong in (
        lambda _: iter([b"x" * 7000]),
        lambda _: iter([b"wei"]),
        lambda d: iter([BLOBS[d], b"more" * 10**6]),
    ):
        made = Cache(tmp_path)
        with pytest.raises(errors.DigestMismatch, match=r"model\.onnx"):
            made.prepare(SPEC, wrong)
        assert not made.folder_of(SPEC.key).exists()
        assert not list((tmp_path / "blobs").iterdir())
    assert Cache(tmp_path).prepare(SPEC, fetch).is_dir()


def test_a_fetch_that_breaks_off_goes_on_where_it_can(tmp_path: Path) -> None:
    """Files that arrived whole are not fetched again; the half one is."""
    asked: list[Digest] = []

    def breaking(digest: Digest) -> Iterator[bytes]:
        asked.append(digest)
        yield BLOBS[digest][:2]
        if len(asked) == 2:
            raise errors.ServerUnavailable("away")
        yield BLOBS[digest][2:]

    with pytest.raises(errors.ServerUnavailable):
        Cache(tmp_path).prepare(SPEC, breaking)
    Cache(tmp_path).prepare(SPEC, breaking)
    assert len(asked) == 3


@pytest.mark.req("S1")
def test_a_flipped_bit_is_found_before_the_load(tmp_path: Path) -> None:
    """A changed, shortened or missing file is refused by name; discarded, it is fetched anew."""
    made = Cache(tmp_path)
    folder = made.prepare(SPEC, fetch)
    path = folder / "model.onnx"
    for change in (lambda d: d[:5] + b"X" + d[6:], lambda d: d[:-1], None):
        path.chmod(0o600)
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(FILES["model.onnx"]))
        with pytest.raises(errors.DigestMismatch, match=r"model\.onnx"):
            verify(SPEC, folder)
        made.discard(SPEC)
        assert verify(SPEC, made.prepare(SPEC, fetch)) == FILES


def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    """Whatever a table says, nothing is written outside."""
    import msgspec

    entry = msgspec.structs.replace(SPEC.files[0], path="../evil")
    with pytest.raises(errors.InvalidManifest):
        Cache(tmp_path).prepare(msgspec.structs.replace(SPEC, files=(entry,)), fetch)
    assert not (tmp_path.parent / "evil").exists()


def test_unused_versions_are_swept_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest few stay for a way back; blobs that nobody links to go with their version."""
    monkeypatch.setattr(cache, "UNUSED_VERSIONS_KEPT", 2)
    made = Cache(tmp_path)
    specs = []
    for number in range(5):
        files = {"model.onnx": b"%d" % number}
        BLOBS.update(models.blobs(files))
        specs.append(models.spec(files, f"{number + 1}.0.0"))
        folder = made.prepare(specs[-1], fetch)
        os.utime(folder, (1_000_000 + number, 1_000_000 + number))
    assert made.sweep([specs[0].key]) == 2
    left = [spec.semver for spec in specs if made.folder_of(spec.key).exists()]
    assert left == ["1.0.0", "4.0.0", "5.0.0"]
    assert len(list((tmp_path / "blobs").iterdir())) == 3


def test_what_a_killed_start_left_is_removed(tmp_path: Path) -> None:
    """Half written files are not mistaken for anything."""
    Cache(tmp_path)
    (tmp_path / "incoming" / "x.part").write_bytes(b"half")
    (tmp_path / "incoming" / "folder").mkdir()
    Cache(tmp_path)
    assert not list((tmp_path / "incoming").iterdir())
