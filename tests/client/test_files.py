"""Bytes survive breaks: uploads that go on, downloads that resume, and nothing that is not what was
registered.
"""

import hashlib
from pathlib import Path

import pytest

from modelkeep.client import Client, files
from modelkeep.core import errors
from modelkeep.core.answers import Registration
from modelkeep.core.catalog import FileEntry
from modelkeep.core.values import Digest
from tests.client.fake_server import FakeServer
from tests.client.samples import version

pytestmark = [pytest.mark.req("U2", "V1"), pytest.mark.network]
BYTES = bytes(range(256)) * 4_000


def _digest(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of two files with its metadata beside them."""
    made = tmp_path / "model"
    (made / "weights").mkdir(parents=True)
    (made / "weights" / "model.onnx").write_bytes(BYTES)
    (made / "metadata.yaml").write_text("model: {framework: onnx}\n")
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "x.pyc").write_bytes(b"x")
    return made


def _finalized(server: FakeServer) -> Registration:
    made = Registration(version=version(), created=True, reasons=("first",))
    server.drafts.finalize = made
    return made


def _puts(server: FakeServer) -> list[tuple[str, int, int]]:
    return [
        (asked.query["path"], int(asked.query["offset"]), len(asked.body))
        for asked in server.asked
        if asked.method == "PUT"
    ]


def test_a_folder_is_registered_whole(server: FakeServer, client: Client, folder: Path) -> None:
    """Every file is announced by digest and sent once; caches are left out; the folder's metadata counts."""
    made = _finalized(server)
    told: list[tuple[str, int, int]] = []
    found = client.register(
        "churn",
        folder,
        metrics={"accuracy@test": 0.94},
        params={"depth": 6},
        tags={"team": "risk"},
        progress=lambda *words: told.append(words),
    )
    assert found == made
    assert server.drafts.draft is not None
    spec = server.drafts.draft["spec"]
    assert [entry["path"] for entry in spec["files"]] == ["metadata.yaml", "weights/model.onnx"]
    assert spec["metadata"] == {"model": {"framework": "onnx"}}
    assert spec["metrics"][0]["name"] == "accuracy"
    assert spec["metrics"][0]["split"] == "test"
    assert spec["params"] == {"depth": "6"}
    assert server.drafts.stored[_digest(BYTES)] == BYTES
    total = len(BYTES) + 25
    assert ("hash", total, total) in told
    assert told[-1] == ("upload", total, total)


def test_an_upload_goes_on_after_breaks(server: FakeServer, client: Client, folder: Path) -> None:
    """Two broken connections later the bytes are there, and none was sent twice."""
    _finalized(server)
    server.cut_uploads_at = [25, 300_000, 400_000]
    client.register("churn", folder)
    assert server.drafts.stored[_digest(BYTES)] == BYTES
    weights = [(offset, length) for path, offset, length in _puts(server) if path == "weights/model.onnx"]
    assert weights == [(0, 300_000), (300_000, 400_000), (700_000, len(BYTES) - 700_000)]


def test_what_is_there_is_not_sent(server: FakeServer, client: Client, folder: Path) -> None:
    """Bytes that the server holds, whole or in part, are not sent again."""
    _finalized(server)
    server.drafts.stored[_digest(BYTES)] = BYTES[:1_000_000]
    client.register("churn", folder)
    assert ("weights/model.onnx", 1_000_000, len(BYTES) - 1_000_000) in _puts(server)
    server.asked.clear()
    client.register("churn", folder)
    assert not _puts(server)


def test_equal_files_are_sent_once(server: FakeServer, client: Client, tmp_path: Path) -> None:
    """Two files with the same bytes are announced twice and sent once."""
    _finalized(server)
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(BYTES)
    client.register("churn", tmp_path)
    assert len(_puts(server)) == 1


def test_a_dead_line_names_the_draft_to_go_on_with(server: FakeServer, client: Client, folder: Path) -> None:
    """When it breaks again and again the error names the draft; with it the next call goes on."""
    _finalized(server)
    server.cut_uploads_at = [25] + [0] * 100
    with pytest.raises(errors.ServerUnavailable) as caught:
        client.register("churn", folder)
    draft = caught.value.details["draft"]
    assert not server.drafts.cancelled
    server.cut_uploads_at = []
    assert client.register("churn", folder, resume=draft).created
    (folder / "metadata.yaml").write_text("model: {framework: other}\n")
    with pytest.raises(errors.InvalidManifest, match="other files"):
        client.register("churn", folder, resume=draft)


def test_a_refused_version_leaves_nothing_behind(server: FakeServer, client: Client, folder: Path) -> None:
    """The draft of a version that cannot be given is cancelled, and the reason is what one hears."""
    server.drafts.finalize = errors.SemverTooLow("An input was removed, so this is 2.0.0.")
    with pytest.raises(errors.SemverTooLow, match="removed"):
        client.register("churn", folder, semver="1.0.1")
    assert server.drafts.cancelled


def test_a_draft_is_written_step_by_step(server: FakeServer, client: Client, folder: Path) -> None:
    """The end of the block registers what was added; an exception in it registers nothing."""
    _finalized(server)
    with client.draft("churn", tags={"team": "risk"}) as draft:
        draft.add(folder / "weights" / "model.onnx", "model.onnx")
        draft.metric("accuracy", 0.94, split="test")
        draft.metrics(f1=0.9)
        draft.params(depth=6)
        draft.tags(stage="try")
    assert draft.registration is not None
    assert server.drafts.draft is not None
    spec = server.drafts.draft["spec"]
    assert [entry["path"] for entry in spec["files"]] == ["model.onnx"]
    assert {metric["name"] for metric in spec["metrics"]} == {"accuracy", "f1"}
    assert spec["tags"] == {"team": "risk", "stage": "try"}
    server.asked.clear()
    with pytest.raises(ZeroDivisionError), client.draft("churn") as draft:
        draft.add(folder)
        raise ZeroDivisionError
    assert not server.asked


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much"])
def test_a_metric_must_be_a_number(client: Client, folder: Path, value: object) -> None:
    """What is no finite number is refused before anything is sent, where JSON would make it null."""
    with pytest.raises(errors.InvalidMetric):
        client.register("churn", folder, metrics={"accuracy": value})  # type: ignore[dict-item]  # on purpose


def test_odd_folders_are_refused(client: Client, tmp_path: Path) -> None:
    """Nothing, an empty folder, a link that leads away: each is told, and nothing is sent."""
    with pytest.raises(errors.InvalidManifest, match="cannot be read"):
        client.register("churn", tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(errors.InvalidManifest, match="empty"):
        client.register("churn", empty)
    (empty / "link").symlink_to("/etc/hostname")
    with pytest.raises(errors.InvalidManifest, match="outside"):
        client.register("churn", empty)


# --------------------------------------------------------------------------------------------------- download


@pytest.fixture
def pulled(server: FakeServer) -> FakeServer:
    """A server with one version of two files."""
    server.files = {"metadata.yaml": b"model: {}\n", "weights/model.onnx": BYTES}
    entries = tuple(
        FileEntry(path=path, size_bytes=len(data), digest=_digest(data))
        for path, data in server.files.items()
    )
    server.on("GET", "/api/v1/version", version(files=entries, size_bytes=sum(e.size_bytes for e in entries)))
    return server


def test_a_pull_brings_verified_files(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """The files stand where they belong, nothing else is left, and a second pull fetches nothing."""
    found = client.pull("churn#production", tmp_path / "out")
    assert (tmp_path / "out" / "weights" / "model.onnx").read_bytes() == BYTES
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["metadata.yaml", "weights"]
    assert (found.fetched, found.already_there) == (2, 0)
    again = client.pull("churn#production", tmp_path / "out")
    assert (again.fetched, again.already_there) == (0, 2)
    refs = {asked.query["ref"] for asked in pulled.asked if asked.path.endswith("/file")}
    assert refs == {"default/churn:#2"}  # one version, also when the stage moves meanwhile


def test_a_pull_goes_on_with_a_range(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """A download that breaks is continued where it was, and the whole is verified."""
    pulled.cut_downloads_at = [10, 300_000, 200_000]
    client.pull("churn:1.1.0", tmp_path / "out")
    assert (tmp_path / "out" / "weights" / "model.onnx").read_bytes() == BYTES
    ranges = [asked.headers.get("range") for asked in pulled.asked if asked.path.endswith("/file")]
    assert ranges == [None, None, "bytes=300000-", "bytes=500000-"]


def test_a_killed_pull_is_taken_up_by_the_next(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """What an earlier process had fetched is verified with the rest and not fetched again."""
    part = tmp_path / "out" / files.PARTS_FOLDER / f"{_digest(BYTES).removeprefix('sha256:')}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(BYTES[:500_000])
    client.pull("churn:1.1.0", tmp_path / "out")
    assert (tmp_path / "out" / "weights" / "model.onnx").read_bytes() == BYTES
    assert "bytes=500000-" in [asked.headers.get("range") for asked in pulled.asked]


def test_wrong_bytes_never_take_their_place(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """Bytes that do not match their digest are thrown away, and the next pull begins anew."""
    pulled.files["weights/model.onnx"] = b"\xff" + BYTES[1:]
    with pytest.raises(errors.DigestMismatch, match="not those that were registered"):
        client.pull("churn:1.1.0", tmp_path / "out")
    assert not (tmp_path / "out" / "weights" / "model.onnx").exists()
    pulled.files["weights/model.onnx"] = BYTES
    client.pull("churn:1.1.0", tmp_path / "out")
    assert (tmp_path / "out" / "weights" / "model.onnx").read_bytes() == BYTES


def test_a_pull_replaces_nothing_unasked(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """Another file in the way stays as it is, before anything was fetched, unless one says so."""
    (tmp_path / "metadata.yaml").write_text("mine")
    with pytest.raises(errors.Conflict, match="another file"):
        client.pull("churn:1.1.0", tmp_path)
    assert (tmp_path / "metadata.yaml").read_text() == "mine"
    assert not any(asked.path.endswith("/file") for asked in pulled.asked)
    client.pull("churn:1.1.0", tmp_path, overwrite=True)
    assert (tmp_path / "metadata.yaml").read_bytes() == b"model: {}\n"


def test_a_link_out_of_the_folder_is_not_followed(pulled: FakeServer, client: Client, tmp_path: Path) -> None:
    """A folder that leads elsewhere is refused, so that a pull writes only where it was told to."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.InvalidManifest, match="leads out"):
        client.pull("churn:1.1.0", tmp_path / "out")
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\\b", ""])
def test_a_server_cannot_choose_where_one_writes(
    server: FakeServer, client: Client, tmp_path: Path, path: str
) -> None:
    """A manifest with a path outside its folder is refused whole."""
    entry = FileEntry(path=path, size_bytes=1, digest=_digest(b"x"))
    server.on("GET", "/api/v1/version", version(files=(entry,)))
    with pytest.raises(errors.InvalidManifest):
        client.pull("churn:1.1.0", tmp_path / "out")
    assert not (tmp_path / "out").exists()
