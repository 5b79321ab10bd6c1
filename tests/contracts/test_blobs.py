"""The one suite of the blob port, run on each store: the folder, a bucket of a real S3 server, and the fake.

What only one of them can do or suffer is tested beside it, in tests/adapters/.
"""

import os
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from modelkeep.adapters.blobs_folder import FolderBlobs
from modelkeep.adapters.blobs_s3 import S3Blobs
from modelkeep.core.values import Digest
from modelkeep.ports import BlobStore
from tests.contracts.blobs import Backend, BlobStoreContract
from tests.fakes import MemoryBlobs, MemoryDisk
from tests.servers import S3Server


class FolderBackend(Backend):
    """A folder of the test's own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> BlobStore:
        return FolderBlobs(self._root)

    def damage(self, digest: Digest, data: bytes) -> None:
        text = digest.removeprefix("sha256:")
        (self._root / "sha256" / text[:2] / text[2:]).write_bytes(data)

    def leftovers(self) -> list[str]:
        blobs = (
            path for path in (self._root / "sha256").rglob("*") if path.is_file() and len(path.name) != 62
        )
        return os.listdir(self._root / "uploads") + [path.name for path in blobs]


class S3Backend(Backend):
    """A bucket of the test's own, and a spool folder."""

    def __init__(self, server: S3Server, spool: Path) -> None:
        self._spool = spool
        self._bucket = server.new_bucket()
        self._server = server

    def open(self) -> BlobStore:
        return S3Blobs(
            self._bucket,
            self._spool,
            prefix="some/where",
            endpoint=self._server.endpoint,
            region=self._server.region,
            access_key_id=self._server.access_key,
            secret_access_key=self._server.secret_key,
            patience_s=10,
        )

    def _whole_bucket(self) -> S3Store:
        """A client without the store's prefix, to look and to do harm behind its back."""
        return S3Store(
            self._bucket,
            endpoint=self._server.endpoint,
            region=self._server.region,
            access_key_id=self._server.access_key,
            secret_access_key=self._server.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    def damage(self, digest: Digest, data: bytes) -> None:
        text = digest.removeprefix("sha256:")
        obstore.put(self._whole_bucket(), f"some/where/sha256/{text[:2]}/{text[2:]}", data)

    def leftovers(self) -> list[str]:
        keys = [item["path"] for item in obstore.list(self._whole_bucket()).collect()]
        return os.listdir(self._spool) + [key for key in keys if not key.startswith("some/where/sha256/")]


class MemoryBackend(Backend):
    """The fake."""

    def __init__(self) -> None:
        self._disk = MemoryDisk()

    def open(self) -> BlobStore:
        return MemoryBlobs(self._disk)

    def damage(self, digest: Digest, data: bytes) -> None:
        self._disk.blobs[digest] = (data, self._disk.blobs[digest][1])

    def leftovers(self) -> list[str]:
        return list(self._disk.sessions)


class TestFolderBlobs(BlobStoreContract):
    """The folder keeps the contract."""

    @pytest.fixture
    def backend(self, tmp_path: Path) -> Backend:
        return FolderBackend(tmp_path / "blobs")


class TestS3Blobs(BlobStoreContract):
    """A bucket keeps the contract."""

    @pytest.fixture
    def backend(self, s3_server: S3Server, tmp_path: Path) -> Backend:
        return S3Backend(s3_server, tmp_path / "spool")


class TestMemoryBlobs(BlobStoreContract):
    """The fake keeps the contract, so tests that use it may believe it."""

    @pytest.fixture
    def backend(self) -> Backend:
        return MemoryBackend()
