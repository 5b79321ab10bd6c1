"""Blobs in an S3 bucket, or whatever speaks its protocol; uploads lie on a local disk until they are proved.

What this file does not do: keep upload sessions in the bucket. S3's own multipart uploads cannot be read back
to be hashed, take no piece below 5 MiB but the last, and forget nothing by themselves; a session in a local
spool folder can be resumed at any byte, survives a restart of this process, and reaches the bucket only when
its digest is right. The price is room on the local disk for uploads under way, and that an upload can be
resumed only on the server where it began.

An object appears whole or not at all, so a commit simply stores it, over an equal one where there is one.
Storing only if absent would have to send a large object as a single request from memory. A process killed in
the middle of a commit leaves parts in the bucket that nobody sees: give the bucket a lifecycle rule that
aborts incomplete multipart uploads.
"""

import contextlib
import re
from collections.abc import Generator, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelkeep.adapters.blobs_disk import disk_errors, read_range
from modelkeep.adapters.blobs_spool import UploadSpool, verified
from modelkeep.core import errors, values
from modelkeep.core.catalog import StoredBlob
from modelkeep.core.values import Digest
from modelkeep.ports import BlobInfo, check_range, no_such_blob

if TYPE_CHECKING:
    from obstore.store import S3Config

# Limits of the talk with the bucket; each with the reason for its size.
PART_BYTES = 8 * 1024 * 1024
"""Bytes of a part of an upload, and of one read: S3 wants 5 MiB or more, memory wants little."""
PARTS_AT_ONCE = 3
"""Parts on their way at the same time, so that one blob under way takes about 32 MiB."""
PARTS_MAX = 10_000
"""Parts that S3 takes for one object; a blob too large for that gets larger parts."""
CONNECT_S = 5.0
"""Time for a connection to come about."""
REQUEST_S = 60.0
"""Time for one request with one part: a line of 140 kB/s is still good enough."""
PATIENCE_S = 90.0
"""Time for a request with all its repetitions; a caller of ours gives up soon after."""
RETRIES_MAX = 6
"""Repetitions of one request, with random, doubling pauses from 0.1 s to 10 s."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_STATUS = re.compile(r"status(?: code)?: ([1-5][0-9]{2})\b")


class S3Blobs:
    """The `BlobStore` of a bucket. Several servers may share a bucket; each has its own spool folder."""

    def __init__(
        self,
        bucket: str,
        spool: Path,
        *,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Prepare to talk to a bucket; nothing is sent yet.

        Args:
            spool: a folder on a local disk for uploads under way.
            prefix: a folder inside the bucket.
            endpoint: the address of a server that is not AWS; `http://` is taken for what it says.
            access_key_id, secret_access_key, session_token: where missing, the ways that cloud machines know
                (instance role, web identity, the usual variables) are tried by the library.
            patience_s: seconds for one request with all its repetitions.

        Raises:
            ExtraMissing: the `s3` extra is not installed.
            InvalidSetting: the address or the bucket cannot be one.
            BlobsUnavailable: the spool folder cannot be used.
        """
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as problem:
            raise errors.ExtraMissing(
                "Keeping files in S3 needs one more part: pip install 'modelkeep[s3]'.", extra="s3"
            ) from problem
        _check_address(bucket, endpoint)
        config: S3Config = {"bucket": bucket, "virtual_hosted_style_request": endpoint is None}
        if endpoint is not None:
            config["endpoint"] = endpoint
        if region is not None:
            config["region"] = region
        if access_key_id is not None and secret_access_key is not None:
            config["access_key_id"] = access_key_id
            config["secret_access_key"] = secret_access_key
            if session_token is not None:
                config["session_token"] = session_token
        self._store: S3Store = S3Store(
            config=config,
            prefix=prefix.strip("/") or None,
            client_options={
                "allow_http": endpoint is not None and endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=CONNECT_S),
                "timeout": timedelta(seconds=min(REQUEST_S, patience_s)),
            },
            retry_config={
                "max_retries": RETRIES_MAX,
                "retry_timeout": timedelta(seconds=patience_s),
                "backoff": {
                    "init_backoff": timedelta(seconds=0.1),
                    "max_backoff": timedelta(seconds=10),
                    "base": 2,
                },
            },
        )
        self._obstore = obstore
        self._where = f"the S3 bucket {bucket!r}"
        self._spool = UploadSpool(spool)

    def close(self) -> None:
        """See `BlobStore.close`."""
        self._spool.close()

    # The bucket, drawn:
    #
    #     <prefix>/sha256/ab/<62 hex>     a blob, named as in the folder store; either copies to the other

    @staticmethod
    def _key(digest: Digest) -> str:
        """The only function that makes a key out of a digest."""
        text = values.check_digest(digest).removeprefix("sha256:")
        return f"sha256/{text[:2]}/{text[2:]}"

    def begin(self, upload_id: str, size_bytes: int | None = None) -> int:
        """See `BlobStore.begin`."""
        return self._spool.begin(upload_id, size_bytes)

    def append(self, upload_id: str, offset: int, chunks: Iterable[bytes]) -> int:
        """See `BlobStore.append`."""
        return self._spool.append(upload_id, offset, chunks)

    def status(self, upload_id: str) -> int:
        """See `BlobStore.status`."""
        return self._spool.status(upload_id)

    def cancel(self, upload_id: str) -> None:
        """See `BlobStore.cancel`."""
        self._spool.cancel(upload_id)

    def sweep_uploads(self, older_than: datetime) -> int:
        """See `BlobStore.sweep_uploads`."""
        return self._spool.sweep(older_than)

    def commit(self, upload_id: str, expected: Digest) -> BlobInfo:
        """See `BlobStore.commit`. If the bucket does not answer, the session stays for another try."""
        values.check_digest(expected)
        try:
            return self._store_upload(upload_id, expected)
        except errors.BlobNotFound:  # committed before, and the answer was lost?
            found = self.stat(expected)
            if found is None:
                raise
            return found

    def seal(self, upload_id: str) -> BlobInfo:
        """See `BlobStore.seal`. If the bucket does not answer, the session stays for another try."""
        return self._store_upload(upload_id, None)

    @property
    def near(self) -> bool:
        """See `BlobStore.near`."""
        return False

    @property
    def small(self) -> None:
        """See `BlobStore.small`: a bucket takes each file with a request of its own."""
        return None

    def open_upload(self, upload_id: str) -> Generator[bytes, None, None]:
        """See `BlobStore.open_upload`."""
        return self._spool.read(upload_id)

    def _store_upload(self, upload_id: str, expected: Digest | None) -> BlobInfo:
        with self._spool.sealed(upload_id, expected) as (fd, blob):
            self._send(fd, blob)
            self._spool.cancel(upload_id)
            return blob

    def _send(self, fd: int, blob: BlobInfo) -> None:
        """Store a proved upload; it is hashed again as it leaves, and does not appear if that differs."""
        key, size = self._key(blob.digest), blob.size_bytes
        chunks = _outgoing(fd, size, blob.digest)
        with self._answers(f"store {blob.digest}"):
            if size <= PART_BYTES:
                self._obstore.put(self._store, key, b"".join(chunks), use_multipart=False)
                return
            self._obstore.put(
                self._store,
                key,
                chunks,
                use_multipart=True,
                chunk_size=max(PART_BYTES, -(-size // PARTS_MAX)),
                max_concurrency=PARTS_AT_ONCE,
            )

    def stat(self, digest: Digest) -> BlobInfo | None:
        """See `BlobStore.stat`."""
        key = self._key(digest)
        with self._answers(f"look for {digest}"):
            try:
                found = self._obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return BlobInfo(digest=digest, size_bytes=found["size"])

    def open(
        self, digest: Digest, offset: int = 0, length: int | None = None
    ) -> Generator[bytes, None, None]:
        """See `BlobStore.open`. Each chunk is a request of its own: a slow reader holds no connection."""
        found = self.stat(digest)
        if found is None:
            raise no_such_blob(digest)
        return self._read(digest, offset, check_range(found.size_bytes, offset, length))

    def _read(self, digest: Digest, start: int, end: int) -> Generator[bytes, None, None]:
        key = self._key(digest)
        while start < end:
            with self._answers(f"read {digest}"):
                try:
                    chunk = bytes(
                        self._obstore.get_range(
                            self._store, key, start=start, end=min(end, start + PART_BYTES)
                        )
                    )
                except FileNotFoundError:
                    raise no_such_blob(digest) from None
            if not chunk:
                return  # the object became shorter; a verified read tells
            yield chunk
            start += len(chunk)

    def open_verified(self, digest: Digest) -> Generator[bytes, None, None]:
        """See `BlobStore.open_verified`."""
        return verified(
            self.open(digest),
            digest,
            "the stored object is damaged; run 'modelkeep fsck', then restore it or register it again",
        )

    def verify(self, digest: Digest) -> BlobInfo:
        """See `BlobStore.verify`."""
        return BlobInfo(digest=digest, size_bytes=sum(map(len, self.open_verified(digest))))

    def iterate(self) -> Iterator[StoredBlob]:
        """See `BlobStore.iterate`. Holds one page of the bucket's listing at a time."""
        pages = self._obstore.list(self._store, prefix="sha256", chunk_size=values.PAGE_MAX)
        while True:
            with self._answers("list the stored files"):
                page = next(pages, None)
            if page is None:
                return
            for item in page:
                text = item["path"].removeprefix("sha256/").replace("/", "", 1)
                with contextlib.suppress(errors.InvalidReference):  # what is no blob is none of ours
                    digest = values.check_digest(f"sha256:{text}")
                    yield StoredBlob(
                        digest=digest,
                        size_bytes=item["size"],
                        modified_at=item["last_modified"].astimezone(UTC),
                    )

    def delete(self, digest: Digest) -> bool:
        """See `BlobStore.delete`."""
        if self.stat(digest) is None:
            return False
        with self._answers(f"delete {digest}"):
            self._obstore.delete(self._store, self._key(digest))
        return True

    def at_hand(self, digest: Digest) -> None:
        """See `BlobStore.at_hand`: a bucket is always waited for."""
        values.check_digest(digest)

    def local_path(self, digest: Digest) -> None:
        """See `BlobStore.local_path`: always None."""
        values.check_digest(digest)

    @contextlib.contextmanager
    def _answers(self, doing: str) -> Iterator[None]:
        """Turn what the bucket's side says into words a person can act on.

        The library's own text is dropped, chain and all: an S3 server quotes the request it refused, and with
        it parts of the credentials that signed it.

        Raises:
            BlobsUnavailable: always, in place of an error of the library.
        """
        try:
            yield
        except (self._obstore.exceptions.BaseError, FileNotFoundError) as problem:
            found = _STATUS.search(str(problem))
            status = found[1] if found else "404" if isinstance(problem, FileNotFoundError) else None
        else:
            return
        match status:
            case "401" | "403":
                advice = "the credentials were refused; check the keys and what they may do there"
            case "404":
                advice = "the bucket does not exist; create it, or correct its name"
            case None:
                advice = "it did not answer in time; check the endpoint and the network, then try again"
            case _:
                advice = (
                    f"it answered with HTTP status {status}; try again, and look into its log if that repeats"
                )
        raise errors.BlobsUnavailable(f"Could not {doing} in {self._where}: {advice}.") from None


def _outgoing(fd: int, size: int, expected: Digest) -> Iterator[bytes]:
    advice = "the spool's disk is damaged and nothing was stored; check it and send the file again"
    with disk_errors("read the spool"):
        yield from verified(read_range(fd, 0, size), expected, advice)


def _check_address(bucket: str, endpoint: str | None) -> None:
    """Refuse what the library would only stumble over at the first request, some of it by crashing.

    Raises:
        InvalidSetting: the bucket or the endpoint cannot be one.
    """
    if not _BUCKET.fullmatch(bucket):
        raise errors.InvalidSetting(
            f"{values.quoted(bucket)} cannot be an S3 bucket: use 3 to 63 lower-case letters, "
            "digits, '.' or '-'.",
            field="bucket",
        )
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        fine = bool(
            parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
        )
    except ValueError:
        fine = False
        parts = None
    # A name and password inside the address would end up in messages and logs, so that is refused too.
    if not fine or parts is None or parts.username or parts.password or parts.query or parts.fragment:
        raise errors.InvalidSetting(
            "The S3 endpoint is not valid; write an address like https://s3.example.com, without a password.",
            field="endpoint",
        )
