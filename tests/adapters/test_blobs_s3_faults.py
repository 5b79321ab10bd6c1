"""What can go wrong with a bucket: a server that is gone or comes back, refused credentials, wrong addresses,
a spool that rots, and a missing library.

What a working bucket must do stands in tests/contracts/blobs.py.
"""

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from modelkeep.adapters.blobs_s3 import PART_BYTES, S3Blobs
from modelkeep.core import errors
from tests.contracts.blobs import noise, put
from tests.fakes import digest_of
from tests.servers import S3Server, run_s3

SECRET = "a-secret-that-nobody-may-see"


def open_bucket(server: S3Server, spool: Path, **changes: Any) -> S3Blobs:
    """Open the server's bucket, with a patience that suits a test."""
    known: dict[str, Any] = {
        "bucket": server.bucket,
        "endpoint": server.endpoint,
        "region": server.region,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
        "patience_s": 30,
    }
    known |= changes
    return S3Blobs(known.pop("bucket"), spool, **known)


@pytest.mark.long
@pytest.mark.network
def test_an_upload_waits_for_a_server_that_is_gone(tmp_path: Path) -> None:
    """With the server away a commit fails in time and keeps the upload; when it is back the same commit
    succeeds, and what was stored before is still there."""
    data = noise(2 * PART_BYTES)
    with run_s3() as server:
        store = open_bucket(server, tmp_path, patience_s=2)
        before = put(store, b"stored before")
        store.begin("up_1", len(data))
        store.append("up_1", 0, [data])
        server.kill()
        started = time.monotonic()
        for act in (
            lambda: store.commit("up_1", digest_of(data)),
            lambda: store.stat(before),
            lambda: list(store.iterate()),
        ):
            with pytest.raises(errors.BlobsUnavailable, match="check the endpoint and the network"):
                act()
        assert time.monotonic() - started < 60
        assert store.status("up_1") == len(data)
        server.start()
        store = open_bucket(server, tmp_path)
        assert store.commit("up_1", digest_of(data)).size_bytes == len(data)
        assert store.verify(digest_of(data)).size_bytes == len(data)
        assert store.verify(before).size_bytes == len(b"stored before")
        store.close()


@pytest.mark.parametrize(
    "changes", [{"secret_access_key": SECRET}, {"access_key_id": SECRET, "session_token": SECRET}]
)
def test_refused_credentials_are_named_but_not_shown(
    s3_server: S3Server, tmp_path: Path, changes: dict[str, str]
) -> None:
    """The message says that the keys were refused; neither it nor its traceback has a key in it."""
    store = open_bucket(s3_server, tmp_path, **changes)
    data = noise(PART_BYTES + 1)
    for upload_id, sent in (("up_small", b"abc"), ("up_large", data)):
        store.begin(upload_id)
        store.append(upload_id, 0, [sent])
    for act in (
        lambda: store.stat(digest_of(b"refused")),
        lambda: list(store.iterate()),
        lambda: store.commit("up_small", digest_of(b"abc")),
        lambda: store.commit("up_large", digest_of(data)),
    ):
        with pytest.raises(errors.BlobsUnavailable, match="credentials were refused") as caught:
            act()
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.details)
        assert SECRET not in shown
        assert s3_server.secret_key not in shown
        assert s3_server.access_key not in shown
    assert SECRET not in repr(store)
    store.close()


def test_a_spool_that_rots_stores_nothing(s3_server: S3Server, tmp_path: Path) -> None:
    """Bytes that change between the proof and the sending are noticed, and no object appears."""
    store = open_bucket(s3_server, tmp_path, bucket=s3_server.new_bucket())
    for size in (1_000, 3 * PART_BYTES):
        data = noise(size)
        store.begin("up_1", size)
        store.append("up_1", 0, [data])
        with store._spool.sealed("up_1", digest_of(data)) as (fd, blob):
            os.pwrite(fd, b"\0\0\0\0", size - 4)
            with pytest.raises(errors.DigestMismatch):
                store._send(fd, blob)
        store.cancel("up_1")
        assert store.stat(digest_of(data)) is None
    assert list(store.iterate()) == []
    store.close()


@pytest.mark.parametrize(
    ("bucket", "endpoint"),
    [
        ("x", None),
        ("Upper", None),
        ("../etc", None),
        ("a/b/c", None),
        ("fine", "nonsense"),
        ("fine", "ftp://127.0.0.1"),
        ("fine", "http://"),
        ("fine", "http://127.0.0.1:99999"),
        ("fine", f"https://me:{SECRET}@example.com"),
        ("fine", "https://example.com/?token=1"),
    ],
)
def test_an_impossible_address_is_refused_at_once(tmp_path: Path, bucket: str, endpoint: str | None) -> None:
    """A bucket or endpoint that cannot be one is an invalid setting before anything is sent, and is not
    echoed."""
    with pytest.raises(errors.InvalidSetting) as caught:
        S3Blobs(bucket, tmp_path, endpoint=endpoint)
    assert SECRET not in caught.value.message


def test_a_missing_library_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the store says what to install."""
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(errors.ExtraMissing, match=r"pip install 'modelkeep\[s3\]'"):
        S3Blobs("bucket", tmp_path)
