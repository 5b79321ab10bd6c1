"""Stand-ins for what lies behind the ports, quick and in memory; each passes its port's whole contract suite.

What this file does not do: pretend. A fake keeps every promise of its port that a process without a disk can
keep, and has no switches that make it lie; tests of faults use the real thing.
"""

import hashlib
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelkeep.core import errors, values
from modelkeep.core.catalog import StoredBlob
from modelkeep.core.values import Digest
from modelkeep.ports import (
    BLOB_MAX_BYTES,
    SMALL_MAX_BYTES,
    BlobInfo,
    SmallFiles,
    check_range,
    check_size,
    check_upload_id,
    no_such_blob,
    no_such_upload,
    wrong_digest,
    wrong_offset,
)

CHUNK_BYTES = 64 * 1024


def digest_of(data: bytes) -> Digest:
    """The digest of some bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


@dataclass
class _Session:
    declared: int | None
    written_at: datetime
    data: bytearray = field(default_factory=bytearray)
    writing: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class MemoryDisk:
    """What outlives a `MemoryBlobs`: hand the same one to the next, and that is a restart."""

    blobs: dict[Digest, tuple[bytes, datetime]] = field(default_factory=dict)
    sessions: dict[str, _Session] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryBlobs:
    """A `BlobStore` in memory."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = disk or MemoryDisk()

    def close(self) -> None:
        """Nothing to let go of."""

    def begin(self, upload_id: str, size_bytes: int | None = None) -> int:
        check_upload_id(upload_id)
        check_size(size_bytes)
        with self.disk.lock:
            session = self.disk.sessions.setdefault(upload_id, _Session(size_bytes, datetime.now(UTC)))
        if session.declared != size_bytes:
            raise errors.IdempotencyMismatch("The upload is open with another size.", upload_id=upload_id)
        return len(session.data)

    def append(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        session = self._session(upload_id)
        if not session.writing.acquire(timeout=5):
            raise errors.Overloaded("Another request is still writing this upload.", upload_id=upload_id)
        try:
            if offset != len(session.data):
                raise wrong_offset(upload_id, len(session.data))
            limit = BLOB_MAX_BYTES if session.declared is None else session.declared
            for chunk in chunks:
                if self.disk.sessions.get(upload_id) is not session:
                    raise no_such_upload(upload_id)
                if len(session.data) + len(chunk) > limit:
                    raise errors.LimitExceeded("More bytes came than were declared.", limit=limit)
                session.data += chunk
                session.written_at = datetime.now(UTC)
            return len(session.data)
        finally:
            session.writing.release()

    def status(self, upload_id: str) -> int:
        return len(self._session(upload_id).data)

    def commit(self, upload_id: str, expected: Digest) -> BlobInfo:
        values.check_digest(expected)
        try:
            session = self._session(upload_id)
        except errors.BlobNotFound:
            found = self.stat(expected)
            if found is None:
                raise
            return found
        return self._store(upload_id, session, expected)

    def seal(self, upload_id: str) -> BlobInfo:
        return self._store(upload_id, self._session(upload_id), None)

    def _store(self, upload_id: str, session: _Session, expected: Digest | None) -> BlobInfo:
        with session.writing:
            data = bytes(session.data)
        if session.declared is not None and session.declared != len(data):
            raise wrong_offset(upload_id, len(data))
        self.cancel(upload_id)
        actual = digest_of(data)
        if expected is not None and actual != expected:
            raise wrong_digest(expected, actual, "send the file again")
        with self.disk.lock:
            self.disk.blobs[actual] = (data, datetime.now(UTC))
        return BlobInfo(digest=actual, size_bytes=len(data))

    @property
    def near(self) -> bool:
        return True

    @property
    def small(self) -> SmallFiles | None:
        return None

    def open_upload(self, upload_id: str) -> Iterator[bytes]:
        chunks = self._read_upload(upload_id)
        next(chunks)
        return chunks

    def _read_upload(self, upload_id: str) -> Generator[bytes, None, None]:
        session = self._session(upload_id)
        if not session.writing.acquire(timeout=5):
            raise errors.Overloaded("Another request is still writing this upload.", upload_id=upload_id)
        try:
            yield b""
            for at in range(0, len(session.data), CHUNK_BYTES):
                yield bytes(session.data[at : at + CHUNK_BYTES])
        finally:
            session.writing.release()

    def cancel(self, upload_id: str) -> None:
        check_upload_id(upload_id)
        with self.disk.lock:
            self.disk.sessions.pop(upload_id, None)

    def stat(self, digest: Digest) -> BlobInfo | None:
        found = self.disk.blobs.get(values.check_digest(digest))
        return None if found is None else BlobInfo(digest=digest, size_bytes=len(found[0]))

    def open(self, digest: Digest, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        found = self.disk.blobs.get(values.check_digest(digest))
        if found is None:
            raise no_such_blob(digest)
        data = found[0]
        end = check_range(len(data), offset, length)
        return (data[at : min(end, at + CHUNK_BYTES)] for at in range(offset, end, CHUNK_BYTES))

    def open_verified(self, digest: Digest) -> Iterator[bytes]:
        return self._verified(digest, self.open(digest))

    @staticmethod
    def _verified(digest: Digest, chunks: Iterator[bytes]) -> Generator[bytes, None, None]:
        sha256 = hashlib.sha256()
        for chunk in chunks:
            sha256.update(chunk)
            yield chunk
        actual = Digest(f"sha256:{sha256.hexdigest()}")
        if actual != digest:
            raise wrong_digest(digest, actual, "restore it")

    def at_hand(self, digest: Digest) -> bytes | None:
        found = self.disk.blobs.get(values.check_digest(digest))
        if found is None or len(found[0]) > SMALL_MAX_BYTES or digest_of(found[0]) != digest:
            return None
        return found[0]

    def verify(self, digest: Digest) -> BlobInfo:
        return BlobInfo(digest=digest, size_bytes=sum(map(len, self.open_verified(digest))))

    def iterate(self) -> Iterator[StoredBlob]:
        with self.disk.lock:
            found = sorted(self.disk.blobs.items())
        for digest, (data, modified_at) in found:
            yield StoredBlob(digest=digest, size_bytes=len(data), modified_at=modified_at)

    def delete(self, digest: Digest) -> bool:
        values.check_digest(digest)
        with self.disk.lock:
            return self.disk.blobs.pop(digest, None) is not None

    def sweep_uploads(self, older_than: datetime) -> int:
        with self.disk.lock:
            stale = [
                upload_id
                for upload_id, session in self.disk.sessions.items()
                if session.written_at < older_than and not session.writing.locked()
            ]
            for upload_id in stale:
                del self.disk.sessions[upload_id]
        return len(stale)

    def local_path(self, digest: Digest) -> None:
        values.check_digest(digest)

    def _session(self, upload_id: str) -> _Session:
        session = self.disk.sessions.get(check_upload_id(upload_id))
        if session is None:
            raise no_such_upload(upload_id)
        return session
