"""Artifacts through the MLflow door: bytes in and out, folders, parts, and all that must not happen."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.core.tracking import Artifact
from modelkeep.core.values import Digest, ModelName
from modelkeep.service import artifacts as artifact_service
from modelkeep.service import small_files
from modelkeep.service.act import SYSTEM_CONTEXT, Act
from modelkeep.service.house import House
from modelkeep.store import artifacts, small_contents
from modelkeep.store.artifacts import OwnerKind
from modelkeep.web import exchange, uploads
from modelkeep.web.app import create_app
from tests.web.inprocess import Cut, InProcess, Reply, in_process
from tests.web.processes import serving
from tests.web.world import World, digest_of, fill, opened, register

pytestmark = pytest.mark.req("T1")

JSON = {"content-type": "application/json"}
API = "/api/2.0/mlflow"
STORE = "/api/2.0/mlflow-artifacts"
FILES = STORE + "/artifacts"


def new_run(client: InProcess, token: str | None = None, experiment: str = "0") -> str:
    """The id of a new run."""
    made = client("POST", f"{API}/runs/create", {"experiment_id": experiment}, token=token)
    return str(made.json()["run"]["info"]["run_id"])


@pytest.fixture
def root(client: InProcess) -> str:
    """The artifact address of a new run."""
    return f"0/{new_run(client)}/artifacts"


def put(client: InProcess, place: str, data: bytes, **more: Any) -> Reply:
    """Send a file."""
    return client("PUT", f"{FILES}/{quote(place)}", raw=data, **more)


def names(client: InProcess, place: str) -> list[str]:
    """What a folder has, folders with a slash."""
    reply = client("GET", FILES, query={"path": place})
    assert reply.status == 200, reply.body
    return [f["path"] + "/" * f["is_dir"] for f in reply.json().get("files", ())]


def code(reply: Reply) -> tuple[int, str]:
    """The status and MLflow's error code."""
    return reply.status, reply.json()["error_code"]


# --------------------------------------------------------------------------------------- in, out, and folders


@pytest.mark.req("V3")
def test_small_files_are_settled_by_whoever_brings_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows go in the background, the sender waits for its own commit alone, and the end waits for
    them."""
    monkeypatch.setattr(small_files, "SETTLE_FILES", 3)
    settled: list[int] = []
    begun = threading.Event()

    def sync(blobs: FolderBlobs, digests: Sequence[Digest], real: Any = FolderBlobs.sync) -> None:
        settled.append(len(digests))
        begun.set()
        real(blobs, digests)

    monkeypatch.setattr(FolderBlobs, "sync", sync)
    with opened(tmp_path / "data", "local") as house:
        with in_process(create_app(house)) as client:
            place = f"0/{new_run(client)}/artifacts"
            for number in range(3):
                assert put(client, f"{place}/f{number}", b"%d" % number).status == 200
            assert begun.wait(60)
        rows = house.desk.read(SYSTEM_CONTEXT, lambda act: small_contents.list_after(act.tx, -1, 10))
        assert rows == []
    assert settled == [3]


@pytest.mark.parametrize("size", [0, 1, 10_000, 300_000, 3_000_000])
def test_a_file_goes_in_and_comes_out(client: InProcess, root: str, size: int) -> None:
    """What is sent is what is read, with its digest; the content is found under it in the blob store."""
    data = os.urandom(size)
    reply = put(client, f"{root}/model/weights.bin", data)
    assert (reply.status, reply.json()) == (200, {})
    found = client("GET", f"{FILES}/{root}/model/weights.bin")
    assert (found.status, found.body) == (200, data)
    assert found.headers["x-modelkeep-digest"] == digest_of(data)
    assert found.headers["content-disposition"] == "attachment; filename*=UTF-8''weights.bin"
    assert found.headers["content-type"] == "application/octet-stream"
    head = client("HEAD", f"{FILES}/{root}/model/weights.bin")
    assert (head.status, head.headers["content-length"], head.body) == (200, str(size), b"")


def test_a_range_of_a_file(client: InProcess, root: str) -> None:
    """A reader gets the part that it asks for, as who reads in parts does."""
    data = os.urandom(1_000_000)
    put(client, f"{root}/a", data)
    reply = client("GET", f"{FILES}/{root}/a", headers={"range": "bytes=10-500009"})
    assert (reply.status, reply.headers["content-range"]) == (206, "bytes 10-500009/1000000")
    assert reply.body == data[10:500_010]
    assert code(client("GET", f"{FILES}/{root}/a", headers={"range": "bytes=1000000-"}))[0] == 400


def test_folders_are_listed_like_mlflow_does(client: InProcess, root: str) -> None:
    """Direct children in the order of names, folders without a size; a file, and what is not there, is an
    empty folder."""
    for path in ("b.txt", "a/x", "a/deep/y", "a.txt", "a0", "c/only/here"):
        put(client, f"{root}/{path}", path.encode())
    reply = client("GET", FILES, query={"path": root}).json()
    assert reply == {
        "files": [
            {"path": "a", "is_dir": True},
            {"path": "a.txt", "is_dir": False, "file_size": 5},
            {"path": "a0", "is_dir": False, "file_size": 2},
            {"path": "b.txt", "is_dir": False, "file_size": 5},
            {"path": "c", "is_dir": True},
        ]
    }
    assert names(client, f"{root}/a") == ["deep/", "x"]
    assert client("GET", FILES, query={"path": f"{root}/a.txt"}).json() == {}
    assert client("GET", FILES, query={"path": f"{root}/none"}).json() == {}
    run_id = root.split("/")[1]
    listed = client("GET", f"{API}/artifacts/list", query={"run_id": run_id, "path": "a"}).json()
    assert listed == {
        "root_uri": f"mlflow-artifacts:/{root}",
        "files": [
            {"path": "a/deep", "is_dir": True},
            {"path": "a/x", "is_dir": False, "file_size": 3},
        ],
    }
    assert client("GET", "/get-artifact", query={"run_uuid": run_id, "path": "a/x"}).body == b"a/x"


def test_a_file_is_replaced_and_deleted(client: InProcess, root: str) -> None:
    """The same path again is other bytes; deleting takes a file, a folder or everything, and what is not
    there as well."""
    put(client, f"{root}/a/x", b"one")
    put(client, f"{root}/a/x", b"another")
    put(client, f"{root}/a/y/z", b"z")
    put(client, f"{root}/b", b"b")
    assert client("GET", f"{FILES}/{root}/a/x").body == b"another"
    assert client("DELETE", f"{FILES}/{root}/a/y").json() == {}
    assert names(client, f"{root}/a") == ["x"]
    assert client("DELETE", f"{FILES}/{root}/none").status == 200
    assert client("DELETE", f"{FILES}/{root}/").status == 200
    assert names(client, root) == []
    assert code(client("GET", f"{FILES}/{root}/b")) == (404, "RESOURCE_DOES_NOT_EXIST")


def test_a_logged_model_has_files_of_its_own(client: InProcess) -> None:
    """They are sent, listed and read by the model's id."""
    made = client("POST", f"{API}/logged-models", {"experiment_id": "0", "name": "clf"}).json()
    model = made["model"]["info"]["model_id"]
    place = f"0/models/{model}/artifacts"
    assert put(client, f"{place}/MLmodel", b"flavors: {}").status == 200
    listed = client("GET", f"{API}/logged-models/{model}/artifacts/directories").json()
    assert listed == {
        "root_uri": f"mlflow-artifacts:/{place}",
        "files": [{"path": "MLmodel", "is_dir": False, "file_size": 11}],
    }
    read = client(
        "GET",
        f"/ajax-api/2.0/mlflow/logged-models/{model}/artifacts/files",
        query={"artifact_file_path": "MLmodel"},
    )
    assert read.body == b"flavors: {}"


def test_what_mlflows_pages_send(client: InProcess, root: str) -> None:
    """Small files by the run's id; large ones are refused before they are read."""
    where = "/ajax-api/2.0/mlflow/upload-artifact"
    query = {"run_uuid": root.split("/")[1], "path": "eval/table.json"}
    assert client("POST", where, query=query, raw=b"{}").status == 200
    assert names(client, f"{root}/eval") == ["table.json"]
    assert code(client("POST", where, query=query, raw=bytes(10 * 1024 * 1024 + 1)))[0] == 400


def test_names_of_every_kind_survive(client: InProcess, root: str) -> None:
    """Spaces, other scripts, percent signs and question marks are names like others."""
    for name in ("a b", "\u00fc\u4e2d", "50%25", "what?", "a#b", "a+b", "a&b=c", "~x", "'\""):
        assert put(client, f"{root}/{name}", name.encode()).status == 200, name
        assert client("GET", f"{FILES}/{root}/{quote(name)}").body == name.encode()
    assert len(names(client, root)) == 9


# -------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "path",
    [
        "..", "../x", "a/../../x", "a/..", "./x", "%2e%2e/x", "%2e%2e%2fx", "a%2Fb", "..%5cx", "a\\b", "C:/x",
        "c%3A%5Cx", "/x", "a//b", "a/", "x%00y", "x%0Ay", "x%E2%80%AEy", "x.", "%20x", "x%20", "a:b", "%ff",
        "x" * 256, "/".join(["x" * 200] * 6),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
@pytest.mark.hostile("path-tricks")
def test_paths_that_lead_elsewhere(client: InProcess, root: str, method: str, path: str) -> None:
    """Each spelling of a path that is no plain relative one is 400, and nothing is read or written."""
    put(client, f"{root}/kept", b"kept")
    reply = client(method, f"{FILES}/{root}/{path}", raw=b"evil" if method == "PUT" else None)
    if method == "DELETE" and path == "a/":
        assert reply.status == 200
        return
    assert code(reply) == (400, "INVALID_PARAMETER_VALUE"), path
    assert names(client, root) == ["kept"]


@pytest.mark.parametrize("path", ["../x", "a/../x", "/etc/passwd", "a\\b", "C:\\x", "%2e%2e", "a//b", "x\ny"])
@pytest.mark.hostile("path-tricks")
def test_paths_in_queries_that_lead_elsewhere(client: InProcess, root: str, path: str) -> None:
    """The same in queries, which are decoded once: an encoded dot is a name there, of nothing."""
    run_id = root.split("/")[1]
    for reply in (
        client("GET", FILES, query={"path": f"{root}/{path}"}),
        client("GET", f"{API}/artifacts/list", query={"run_id": run_id, "path": path}),
    ):
        assert reply.status == (200 if path == "%2e%2e" else 400), path
    reply = client("GET", "/get-artifact", query={"run_id": run_id, "path": path})
    assert reply.status == (404 if path == "%2e%2e" else 400)


@pytest.mark.parametrize(
    "place",
    [
        "", "x", "0", "0/x", "models/x", "0/{run}", "0/{run}/other/x", "1/{run}/artifacts/x",
        "00/{run}/artifacts/x", "0/" + "f" * 32 + "/artifacts/x", "0/models/{run}/artifacts/x",
        "0/models/m-" + "0" * 32 + "/artifacts/x", "registered-models/default/churn/x/model.bin",
        "registered-models/default/churn/0/model.bin", "registered-models/default/nobody/1/model.bin",
        "workspaces/default/0/{run}/artifacts/x", "0/traces/t/artifacts/x",
    ],
)  # fmt: skip
@pytest.mark.hostile("path-tricks")
def test_places_that_are_none(client: InProcess, root: str, place: str) -> None:
    """Whatever is no run's, logged model's or version's is 404 for readers and writers alike."""
    place = place.format(run=root.split("/")[1])
    replies = [client("GET", FILES, query={"path": place})]
    if place:
        replies += [
            put(client, place, b"x"),
            client("GET", f"{FILES}/{place}"),
            client("DELETE", f"{FILES}/{place}"),
        ]
    for reply in replies:
        assert code(reply) == (404, "RESOURCE_DOES_NOT_EXIST"), place


def test_a_file_is_no_folder(client: InProcess, root: str) -> None:
    """A path through a file, and a file in a folder's place, are refused; so is reading a folder."""
    put(client, f"{root}/a", b"x")
    put(client, f"{root}/b/c", b"x")
    for path in ("a/x", "a/x/y", "b"):
        assert code(put(client, f"{root}/{path}", b"x")) == (400, "INVALID_PARAMETER_VALUE")
    assert put(client, root, b"x").status == 400
    assert code(client("GET", f"{FILES}/{root}/b")) == (400, "INVALID_PARAMETER_VALUE")
    assert code(client("GET", f"{FILES}/{root}")) == (400, "INVALID_PARAMETER_VALUE")


@pytest.mark.differs("deleted-files")
def test_a_deleted_run_is_read_and_not_written(client: InProcess, root: str) -> None:
    """As with everything else that is logged: restore it first."""
    put(client, f"{root}/a", b"x")
    client("POST", f"{API}/runs/delete", {"run_id": root.split("/")[1]})
    assert client("GET", f"{FILES}/{root}/a").body == b"x"
    assert put(client, f"{root}/b", b"x").status in (400, 409)
    assert client("DELETE", f"{FILES}/{root}/a").status in (400, 409)
    assert names(client, root) == ["a"]


@pytest.mark.hostile("exhaustion")
def test_bytes_that_break_off_leave_nothing(
    house: House, client: InProcess, root: str, tmp_path: Path
) -> None:
    """Neither a name nor an upload stays of a sender who stops or goes away."""
    for count in (1, 5, 40):
        parts = [os.urandom(uploads.BATCH_BYTES // 8)] * count
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exchange, "STALL_S", 0.1)
            patch.setattr(exchange, "LINGER_S", 0.1)
            assert client("PUT", f"{FILES}/{root}/a", parts=parts, stops=True).status == 408
    assert names(client, root) == []
    assert not list(house.blobs.iterate())
    assert os.listdir(tmp_path / "data" / "blobs" / "uploads") == []


def test_a_digest_that_is_said_is_checked(client: InProcess, root: str) -> None:
    """Other bytes than announced are refused, and are not the artifact."""
    right = {"x-modelkeep-digest": digest_of(b"right")}
    assert put(client, f"{root}/a", b"wrong", headers=right).status == 422
    assert names(client, root) == []
    assert put(client, f"{root}/a", b"right", headers=right).status == 200
    assert put(client, f"{root}/b", b"x", headers={"x-modelkeep-digest": "md5:x"}).status == 400


@pytest.mark.hostile("exhaustion")
def test_more_files_than_a_run_keeps(client: InProcess, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for new names; known ones can be written again, and deleting makes room."""
    monkeypatch.setattr(artifact_service, "ARTIFACTS_MAX", 2)
    assert [put(client, f"{root}/{n}", b"x").status for n in ("a", "b", "c", "a")] == [200, 200, 400, 200]
    client("DELETE", f"{FILES}/{root}/a")
    assert put(client, f"{root}/c", b"x").status == 200


def test_thousands_of_names(client: InProcess, root: str, house: House) -> None:
    """A folder of thousands comes in one answer, and folders are found among them."""
    run_id = root.split("/")[1]
    _many(house, run_id, [f"images/{n:05}.png" for n in range(3_000)] + [f"d{n}/x" for n in range(50)])
    assert len(names(client, f"{root}/images")) == 3_000
    assert names(client, root) == sorted([*(f"d{n}/" for n in range(50)), "images/"])
    assert client("DELETE", f"{FILES}/{root}/images").status == 200
    assert len(names(client, root)) == 50


def _many(house: House, run_id: str, paths: list[str]) -> None:
    """Names for one content, without sending it as often."""

    def write(act: Act) -> None:
        owner = artifacts.find_owner(act.tx, OwnerKind.RUN, run_id)
        assert owner is not None
        for path in paths:
            artifacts.put(
                act.tx, owner, Artifact(path=path, size_bytes=1, digest=digest_of(b"x")), None, 1, None
            )

    house.desk.do(SYSTEM_CONTEXT, write)


# ---------------------------------------------------------------------------------------- registered versions


@pytest.fixture
def version(house: House) -> str:
    """The artifact address of a registered version."""
    register(house, ModelName("default", "churn"), b"the model")
    return "registered-models/default/churn/1"


@pytest.mark.req("V3")
def test_a_version_is_read_and_never_written(client: InProcess, version: str) -> None:
    """Its files are listed and read; whoever writes or deletes is told that versions never change."""
    assert names(client, version) == ["model.bin"]
    reply = client("GET", f"{FILES}/{version}/model.bin")
    assert (reply.body, reply.headers["accept-ranges"]) == (b"the model", "none")
    query = {"name": "churn", "version": "1", "path": "model.bin"}
    for prefix in ("", "/ajax-api/2.0/mlflow"):
        assert client("GET", f"{prefix}/model-versions/get-artifact", query=query).body == b"the model"
    for refused in (
        put(client, f"{version}/model.bin", b"evil"),
        put(client, f"{version}/more", b"evil"),
        client("DELETE", f"{FILES}/{version}/model.bin"),
        client("DELETE", f"{FILES}/{version}"),
        client("POST", f"{STORE}/mpu/create/{version}", {"path": "model.bin", "num_parts": 1}),
    ):
        assert refused.status == 409
        assert "never change" in refused.json()["message"]
    assert names(client, version) == ["model.bin"]


@pytest.mark.req("V3")
def test_a_part_of_a_version_is_not_handed_out_unproved(client: InProcess, version: str) -> None:
    """A range of a version's file gets the whole, each byte of it hashed; a damaged one is an error."""
    reply = client("GET", f"{FILES}/{version}/model.bin", headers={"range": "bytes=0-2"})
    assert (reply.status, reply.body) == (200, b"the model")


@pytest.mark.req("V3")
@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.hostile("changed-underneath")
@pytest.mark.differs("damaged")
def test_damaged_bytes_do_not_look_whole(client: InProcess, house: House, root: str, size: int) -> None:
    """Of a file whose stored bytes have changed nobody gets all."""
    data = os.urandom(size)
    put(client, f"{root}/a", data)
    house.blobs.local_path(digest_of(data)).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # type: ignore[union-attr]
    try:
        assert code(client("GET", f"{FILES}/{root}/a")) == (410, "DATA_LOSS")
    except Cut:
        assert size > 1_000_000


# -------------------------------------------------------------------------------------- uploads in many parts


def created(client: InProcess, root: str, parts: int, name: str = "big.bin") -> dict[str, Any]:
    """A new multipart upload."""
    reply = client("POST", f"{STORE}/mpu/create/{root}", {"path": name, "num_parts": parts})
    assert reply.status == 200, reply.body
    found: dict[str, Any] = reply.json()
    return found


def send_part(client: InProcess, address: dict[str, Any], data: bytes, **more: Any) -> Reply:
    """Send a part to where the server said."""
    url = urlsplit(address["url"])
    query = url.query + "".join(f"&{k}={v}" for k, v in more.items())
    return client("PUT", url.path, query=query, raw=data, headers=address["headers"])


def complete(client: InProcess, root: str, upload: str, parts: list[dict[str, Any]]) -> Reply:
    """End a multipart upload."""
    return client(
        "POST", f"{STORE}/mpu/complete/{root}", {"path": "big.bin", "upload_id": upload, "parts": parts}
    )


def test_a_file_comes_in_parts(house: House, client: InProcess, root: str) -> None:
    """Parts come in any order, one twice, and one goes on where it broke off; the whole is one file then."""
    data = os.urandom(2_500_000)
    pieces = [data[:1_000_000], data[1_000_000:2_000_000], data[2_000_000:]]
    upload = created(client, root, 3, "/home/somebody/big.bin")
    addresses = upload["credentials"]
    assert [address["part_number"] for address in addresses] == [1, 2, 3]
    assert urlsplit(addresses[0]["url"]).netloc == "localhost"
    send_part(client, addresses[2], pieces[2])
    send_part(client, addresses[0], b"something else")
    tags = {3: f'"3-{len(pieces[2])}"', 1: send_part(client, addresses[0], pieces[0]).headers["etag"]}
    send_part(client, addresses[1], pieces[1][:400_000])
    assert send_part(client, addresses[1], pieces[1][500_000:], offset=500_000).status == 409
    tags[2] = send_part(client, addresses[1], pieces[1][400_000:], offset=400_000).headers["etag"]
    parts = [{"part_number": n, "etag": tags[n], "url": "x"} for n in (2, 1, 3)]
    assert names(client, root) == []
    assert complete(client, root, upload["upload_id"], parts).json() == {}
    assert client("GET", f"{FILES}/{root}/big.bin").body == data
    assert complete(client, root, upload["upload_id"], parts).json() == {}, "a lost answer does no harm"
    assert len(list(house.blobs.iterate())) == 1


def test_parts_that_are_missing_or_others(client: InProcess, root: str) -> None:
    """An upload is not ended without all of its parts as they were taken in; it can go on."""
    upload = created(client, root, 2)
    first = send_part(client, upload["credentials"][0], b"one").headers["etag"]
    both: list[dict[str, Any]] = [{"part_number": 1, "etag": first}, {"part_number": 2, "etag": None}]
    assert complete(client, root, upload["upload_id"], both).status == 409
    send_part(client, upload["credentials"][1], b"two")
    other = [{"part_number": 1, "etag": '"1-99"'}, both[1]]
    assert complete(client, root, upload["upload_id"], other).status == 409
    wrong: list[dict[str, Any]]
    for wrong in ([], [both[1]], [both[0], both[0]], [{"part_number": 0}]):
        assert complete(client, root, upload["upload_id"], wrong).status == 400
    assert names(client, root) == []
    assert complete(client, root, upload["upload_id"], both).status == 200
    assert client("GET", f"{FILES}/{root}/big.bin").body == b"onetwo"


def test_an_upload_in_parts_is_given_up(house: House, client: InProcess, root: str) -> None:
    """Nothing stays of it, and giving it up twice is no error."""
    upload = created(client, root, 2)
    send_part(client, upload["credentials"][1], b"two")
    for _ in range(2):
        body = {"path": "big.bin", "upload_id": upload["upload_id"]}
        assert client("POST", f"{STORE}/mpu/abort/{root}", body).json() == {}
    parts = [{"part_number": 1}, {"part_number": 2}]
    assert complete(client, root, upload["upload_id"], parts).status == 409


@pytest.mark.hostile("made-up-tokens")
def test_parts_belong_to_one_path_of_one_run(client: InProcess, root: str) -> None:
    """With the id of somebody's upload nothing can be put elsewhere, and made-up ids are none."""
    upload = created(client, root, 1)["upload_id"]
    client("PUT", f"{STORE}/mpu/part/{root}/big.bin", query={"upload_id": upload, "part_number": 1}, raw=b"x")
    other = f"0/{new_run(client)}/artifacts"
    assert complete(client, other, upload, [{"part_number": 1}]).status == 409
    for made_up in ("", "..", "../x", "mpu_x", "mpu_" + "0" * 27, "MPU_" + "0" * 26):
        query = {"upload_id": made_up, "part_number": 1}
        assert client("PUT", f"{STORE}/mpu/part/{root}/a", query=query, raw=b"x").status == 404
    for number in (0, -1, 10_001, 2**63):
        query = {"upload_id": upload, "part_number": number}
        assert client("PUT", f"{STORE}/mpu/part/{root}/a", query=query, raw=b"x").status == 400
    for count in (0, -1, 10_001):
        body = {"path": "a", "num_parts": count}
        assert client("POST", f"{STORE}/mpu/create/{root}", body).status == 400
    for name in ("", "..", ".", "a/..", "a\\..", "x\0"):
        body = {"path": name, "num_parts": 1}
        assert client("POST", f"{STORE}/mpu/create/{root}", body).status == 400, name


def test_no_address_elsewhere_is_given(client: InProcess, root: str) -> None:
    """Presigned addresses are answered as MLflow answers where there is no such storage."""
    run_id = root.split("/")[1]
    assert code(client("GET", f"{STORE}/presigned/{root}/a")) == (501, "NOT_IMPLEMENTED")
    for kind in ("upload", "download"):
        reply = client("POST", f"{API}/artifacts/presigned-{kind}-url", {"run_id": run_id, "path": "a"})
        assert code(reply) == (400, "INVALID_PARAMETER_VALUE")
        nobody = client("POST", f"{API}/artifacts/presigned-{kind}-url", {"run_id": "f" * 32, "path": "a"})
        assert code(nobody) == (404, "RESOURCE_DOES_NOT_EXIST")


# ----------------------------------------------------------------------------------------------- other people


@pytest.fixture
def teams(tmp_path: Path) -> Iterator[tuple[World, InProcess]]:
    """Two projects with people of every role."""
    with opened(tmp_path / "teams", "token") as house:
        world = fill(house)
        with in_process(create_app(house)) as client:
            yield world, client


@pytest.mark.req("G10")
@pytest.mark.hostile("other-people")
def test_who_may_do_what(teams: tuple[World, InProcess]) -> None:
    """A contributor of the project writes, a viewer reads, and for others the run is not there."""
    world, client = teams
    token = world.tokens
    made = client(
        "POST", f"{API}/experiments/create", {"name": "e"}, token=token["contributor"],
        headers={"x-mlflow-workspace": "own"},
    )  # fmt: skip
    experiment = made.json()["experiment_id"]
    run_id = new_run(client, token["contributor"], experiment)
    place = f"{experiment}/{run_id}/artifacts"
    assert put(client, f"{place}/a", b"x", token=token["contributor"]).status == 200
    assert client("GET", f"{FILES}/{place}/a", token=token["viewer"]).body == b"x"
    refused = put(client, f"{place}/b", b"x", token=token["viewer"])
    assert code(refused) == (403, "PERMISSION_DENIED")
    assert client("DELETE", f"{FILES}/{place}/a", token=token["viewer"]).status == 403
    missing = f"{experiment}/{'f' * 32}/artifacts"
    for method, raw in (("GET", None), ("HEAD", None), ("PUT", b"x"), ("DELETE", None)):
        hidden = client(method, f"{FILES}/{place}/a", raw=raw, token=token["stranger"])
        absent = client(method, f"{FILES}/{missing}/a", raw=raw, token=token["stranger"])
        assert (hidden.status, absent.status) == (404, 404)
    for query in ({"path": place}, {"path": "registered-models/own/churn/1"}):
        assert client("GET", FILES, query=query, token=token["stranger"]).status == 404
        assert client("GET", FILES, query=query, token=token["viewer"]).status == 200
    other = put(client, "registered-models/other/churn/1/model.bin", b"x", token=token["contributor"])
    assert other.status == 404, "not even that it never changes is said to who may not see it"
    body = {"path": "big.bin", "num_parts": 1}
    upload = client("POST", f"{STORE}/mpu/create/{place}", body, token=token["contributor"]).json()
    assert upload["credentials"][0]["headers"] == {"Authorization": f"Bearer {token['contributor']}"}
    url = urlsplit(upload["credentials"][0]["url"])
    assert client("PUT", url.path, query=url.query, raw=b"x").status == 401, (
        "the address alone lets nobody in"
    )
    assert client("PUT", url.path, query=url.query, raw=b"x", token=token["stranger"]).status == 404
    assert client("PUT", url.path, query=url.query, raw=b"x", token=token["viewer"]).status == 403


# --------------------------------------------------------------------------------------------------- for long


# ------------------------------------------------------------------------------ a whole server, a large file


def _peak_bytes(pid: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024


@pytest.mark.long
@pytest.mark.network
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.hostile("exhaustion")
def test_a_gibibyte_takes_no_memory(tmp_path: Path, chunked: bool) -> None:
    """A gibibyte goes in and out; the server never has more than a few pieces of it, and says its digest."""
    piece, count = os.urandom(1024 * 1024), 1024
    whole = hashlib.sha256()
    with (
        serving(tmp_path / "data") as running,
        closing(HTTPConnection(running.address[0], running.address[1], timeout=120)) as connection,
    ):
        connection.request("POST", f"{API}/runs/create", '{"experiment_id": "0"}', JSON)
        run_id = json.loads(connection.getresponse().read())["run"]["info"]["run_id"]
        place = f"{FILES}/0/{run_id}/artifacts/big"
        before = _peak_bytes(running.process.pid)
        size = {} if chunked else {"content-length": str(count * len(piece))}
        connection.request("PUT", place, (piece for _ in range(count)), size, encode_chunked=chunked)
        assert connection.getresponse().read() == b"{}"
        connection.request("GET", place)
        reply = connection.getresponse()
        while data := reply.read(1024 * 1024):
            whole.update(data)
        assert reply.headers["x-modelkeep-digest"] == f"sha256:{whole.hexdigest()}"
        assert whole.hexdigest() == _digest_of_many(piece, count)
        assert _peak_bytes(running.process.pid) - before < 48 * 1024 * 1024


def _digest_of_many(piece: bytes, count: int) -> str:
    found = hashlib.sha256()
    for _ in range(count):
        found.update(piece)
    return found.hexdigest()
