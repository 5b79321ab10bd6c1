"""The doors to the outside, on one page: what each promises, in prose, enough to write an adapter from.

A port exists only where several adapters stand behind it; every adapter, and the fake the tests use, passes
the port's one contract suite in `tests/contracts/`. What this page does not do: name a technology, or hold
any behaviour but the checks of what may cross the door.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.catalog import StoredBlob
from modelkeep.core.values import Digest

# Limits of the blob door; each with the reason for its size.
BLOB_MAX_BYTES = 1024**4
"""Bytes of one blob: far above any model file of today; S3 takes it in 10,000 parts that fit in memory."""
SMALL_MAX_BYTES = 64 * 1024
"""Bytes of a small file: writing so many several times takes less than syncing them once."""
UPLOAD_ID_MAX = 64
"""Characters of an upload id: it becomes part of a file name, and a prefixed UUIDv7 has half of them."""

_UPLOAD_ID = re.compile(rf"[a-z0-9_]{{1,{UPLOAD_ID_MAX}}}", re.ASCII)


class BlobInfo(Struct, frozen=True, kw_only=True):
    """A blob that is there."""

    digest: Digest
    size_bytes: int


class SmallFiles(Protocol):
    """The way in for small files that are there whole, and whose bytes the caller keeps elsewhere until
    `sync` has returned: no session, and one sync for any number of them."""

    def place(self, digest: Digest, data: bytes) -> None:
        """Have a file be a blob at once. It outlives this process, and a loss of power once it was synced.

        What lies there already and is right stays, with a new `modified_at`: it may survive a loss of power,
        which a new file would not yet.

        Args:
            digest: of the data, which is not hashed again.

        Raises:
            LimitExceeded: it has more than `SMALL_MAX_BYTES`.
            StorageFull, BlobsUnavailable: it was not stored.
        """
        ...

    def sync(self, digests: Sequence[Digest]) -> None:
        """Have files that were placed by this process survive a loss of power.

        Raises:
            StorageFull, BlobsUnavailable: nobody knows which of them do. The way in is closed then, for a
                disk that is asked again may well say yes to what it has lost.
        """
        ...

    def put_back(self, files: Sequence[tuple[Digest, bytes]]) -> None:
        """Write files anew, whatever lies in their places; when this returns, they survive a loss of power.

        Raises:
            as `place` and `sync`.
        """
        ...


class BlobStore(Protocol):
    """Keeps bytes under the digest of what they are.

    A blob is complete or absent: it becomes visible only in `commit`, after its digest was checked, or in
    `seal`, under the digest that it turned out to have, and then never changes. Storing content that is there
    already is no error and leaves one blob; it is stored anew, which renews `modified_at` (so that a
    collection under way spares it) and heals a copy that was damaged.

    Bytes arrive through upload sessions. A session is named by an id that the server made (`[a-z0-9_]`, one
    id for one upload, ever) and outlives the process: after a restart `status` says how many bytes there are,
    and `append` goes on from there. An append that breaks off keeps what had arrived. At most one request at
    a time writes a session.

    All methods block and may be called from any thread. Nothing a client sent becomes a path or a key: ids
    and digests are checked at this door, and whatever else is refused before anything is read or written.

    Every method raises InvalidName for an upload id and InvalidReference for a digest that is not one, and
    BlobsUnavailable when the disk or the service behind does not work; these are not repeated below.
    """

    @property
    def near(self) -> bool:
        """Whether blobs lie on a disk of this machine, so that small ones may be at hand."""
        ...

    def begin(self, upload_id: str, size_bytes: int | None = None) -> int:
        """Open an upload session; asking again for an open one is no error.

        Args:
            size_bytes: how many bytes will come, where that is known. More are refused, fewer cannot be
                committed.

        Returns:
            The offset in bytes to append at: 0 for a new session.

        Raises:
            IdempotencyMismatch: the session is open with another size.
            InvalidInput, LimitExceeded: the size is negative, or more than a blob may have.
            StorageFull: there is no room for so many bytes.
        """
        ...

    def append(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        """Add bytes at the end of an upload.

        An error raised by `chunks` itself (a connection that broke) passes through; what came before it is
        kept.

        Args:
            offset: where the caller believes the end to be, in bytes.

        Returns:
            The new offset in bytes.

        Raises:
            OffsetMismatch: the end is elsewhere; `details["offset"]` says where. Nothing was taken from
                `chunks`.
            LimitExceeded: more bytes than the size that was declared; those up to the excess chunk are kept.
            StorageFull: what fitted is kept; the upload can go on when there is room, or be cancelled to give
                it back.
            BlobNotFound: no such session is open, or it was cancelled meanwhile.
            Overloaded: another request is still writing this session.
        """
        ...

    def status(self, upload_id: str) -> int:
        """Say how far an upload is.

        Returns:
            The offset in bytes to append at next.

        Raises:
            BlobNotFound: no such session is open.
        """
        ...

    def commit(self, upload_id: str, expected: Digest) -> BlobInfo:
        """Turn an upload into a blob. When this returns, the blob survives a loss of power.

        The session is closed. Asking again gives the same answer as long as the blob is there, so that a lost
        answer does no harm.

        Raises:
            DigestMismatch: the bytes have another digest (`details["actual"]`); the upload is discarded.
            OffsetMismatch: fewer bytes came than were declared; the session stays open to be resumed.
            BlobNotFound: no such session is open, and no such blob is there.
            StorageFull, BlobsUnavailable: not stored; the session stays open unless the message says to begin
                again.
            Overloaded: another request is still writing this session.
        """
        ...

    def seal(self, upload_id: str) -> BlobInfo:
        """Turn an upload into a blob whose digest nobody said before: it is what the bytes hash to. When this
        returns, the blob survives a loss of power.

        The session is closed. Asking again finds nothing, since an id does not say which blob it became.

        Raises:
            OffsetMismatch: fewer bytes came than were declared; the session stays open to be resumed.
            BlobNotFound: no such session is open.
            StorageFull, BlobsUnavailable: not stored; the session stays open unless the message says to begin
                again.
            Overloaded: another request is still writing this session.
        """
        ...

    @property
    def small(self) -> SmallFiles | None:
        """The way in for small files; None where there is none, any more or ever: upload them like others."""
        ...

    def open_upload(self, upload_id: str) -> Iterator[bytes]:
        """Read what has come of an upload, in chunks, to make one upload out of several. Nobody can write to
        the session until the iterator ends or is dropped.

        Raises:
            BlobNotFound: no such session is open (raised by the call itself).
            Overloaded: another request is still writing this session.
        """
        ...

    def cancel(self, upload_id: str) -> None:
        """Close an upload and give its room back. No error if it is closed, was committed, or never was."""
        ...

    def stat(self, digest: Digest) -> BlobInfo | None:
        """Say whether a blob is there, and its size; None if it is not. The bytes are not read."""
        ...

    def open(self, digest: Digest, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Read a blob, or a range of it, in chunks. The digest is NOT checked: that takes a whole, verified
        read.

        Args:
            length: bytes to read at most; a range that reaches beyond the end stops at the end. None means
                all.

        Returns:
            Non-empty chunks of at most some MiB. Errors of the arguments are raised by the call itself, not
                by the first chunk. Drop the iterator to stop early.

        Raises:
            BlobNotFound: there is no such blob.
            InvalidInput: the offset lies behind the end, or a number is negative.
        """
        ...

    def open_verified(self, digest: Digest) -> Iterator[bytes]:
        """Read a whole blob and hash what is handed out; for bytes that somebody will rely on.

        The reader must treat what it has read as unproven until the iterator ends without an error.

        Raises:
            BlobNotFound: there is no such blob (raised by the call itself).
            DigestMismatch: after the last chunk: these were not the bytes that were stored.
        """
        ...

    def at_hand(self, digest: Digest) -> bytes | None:
        """A blob of at most `SMALL_MAX_BYTES`, whole and verified, if it can be had at once, so that an event
        loop may ask. None otherwise, whatever the reason: `open_verified` waits, or says what is wrong.
        """
        ...

    def verify(self, digest: Digest) -> BlobInfo:
        """Read a whole blob and check its digest, for `fsck` and before serving.

        Raises:
            BlobNotFound: there is no such blob.
            DigestMismatch: its bytes have changed; `details["actual"]` is their digest.
        """
        ...

    def iterate(self) -> Iterator[StoredBlob]:
        """List every blob in the order of digests. What comes or goes meanwhile may be in it or not."""
        ...

    def delete(self, digest: Digest) -> bool:
        """Remove a blob. The caller has made sure that no manifest names it. Returns whether it was there."""
        ...

    def sweep_uploads(self, older_than: datetime) -> int:
        """Cancel the sessions that nobody has written to since `older_than` and nobody is writing to now.

        Returns:
            How many were cancelled.
        """
        ...

    def local_path(self, digest: Digest) -> Path | None:
        """Where a blob lies as a local file, for `sendfile`; None where it does not lie on a local disk.

        Raises:
            BlobNotFound: it would lie on a local disk, but is not there.
        """
        ...

    def close(self) -> None:
        """Let go of files and connections. Open sessions stay for the next process."""
        ...


def check_small(data: bytes) -> None:
    """Check that a file is small. Raises LimitExceeded."""
    if len(data) > SMALL_MAX_BYTES:
        raise errors.LimitExceeded(
            f"A small file has at most {SMALL_MAX_BYTES:,} bytes; upload it like others.", field="size_bytes"
        )


def check_upload_id(upload_id: str) -> str:
    """Return an upload id that is safe inside a file name.

    Raises:
        InvalidName: anything but 1 to 64 lower-case ASCII letters, digits and `_`.
    """
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise errors.InvalidName(
            f"{values.quoted(upload_id, 60)} is no upload id; use the one that the server gave you.",
            field="upload_id",
        )
    return upload_id


def check_size(size_bytes: int | None) -> int | None:
    """Return the declared size of an upload, in bytes.

    Raises:
        InvalidInput: negative.
        LimitExceeded: more than one blob may have.
    """
    if size_bytes is None:
        return None
    if size_bytes < 0:
        raise errors.InvalidInput(
            "A size cannot be negative; leave it out if it is not known.", field="size_bytes"
        )
    if size_bytes > BLOB_MAX_BYTES:
        raise errors.LimitExceeded(
            f"One file may have at most {BLOB_MAX_BYTES:,} bytes; split it.",
            field="size_bytes",
            limit=BLOB_MAX_BYTES,
        )
    return size_bytes


def check_range(size_bytes: int, offset: int, length: int | None) -> int:
    """Return where a range of a blob ends, in bytes from its start, cut off at the blob's own end.

    Raises:
        InvalidInput: a negative number, or an offset behind the end.
    """
    if offset < 0 or offset > size_bytes or (length is not None and length < 0):
        raise errors.InvalidInput(
            f"A range must begin between 0 and {size_bytes:,} and have no negative length.", field="offset"
        )
    return size_bytes if length is None else min(size_bytes, offset + length)


def no_such_upload(upload_id: str) -> errors.BlobNotFound:
    """The one sentence for a session that is not open."""
    return errors.BlobNotFound(
        f"No upload {upload_id} is open: it was finished, cancelled or left for too long. Begin a new one.",
        upload_id=upload_id,
    )


def no_such_blob(digest: Digest) -> errors.BlobNotFound:
    """The one sentence for a blob that is not there."""
    return errors.BlobNotFound(
        f"No file with the digest {digest} is stored here; upload it first.", digest=digest
    )


def wrong_offset(upload_id: str, offset: int) -> errors.OffsetMismatch:
    """The one sentence for an upload that is elsewhere than its sender believes."""
    return errors.OffsetMismatch(
        f"Upload {upload_id} has {offset:,} bytes; send what follows from there.",
        upload_id=upload_id,
        offset=offset,
    )


def wrong_digest(expected: Digest, actual: Digest, advice: str) -> errors.DigestMismatch:
    """The one sentence for bytes that are not what their name says."""
    return errors.DigestMismatch(f"The bytes have the digest {actual}, not {expected}; {advice}.",
                                 expected=expected, actual=actual)  # fmt: skip
