"""The gateway's own copy of versions: files by digest, hashed while they are written, and one read-only
folder a version that links to them, so that versions of equal bytes share the files and nothing else.

With the files here a gateway starts and serves while the control plane is away. A file that no longer has its
digest is thrown out, never served. Where the files come from is the link's business.
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from modelkeep.core import errors, values
from modelkeep.core.catalog import FileEntry
from modelkeep.core.routing import VersionKey, VersionSpec
from modelkeep.core.values import Digest
from modelkeep.serving.options import UNUSED_VERSIONS_KEPT

CHUNK_BYTES = 1024 * 1024
"""Read and hashed at a time."""

_KEY = re.compile(r"version:[0-9a-f]{64}")

Fetch = Callable[[Digest], Iterator[bytes]]
"""The bytes of a blob, chunk by chunk."""


class Cache:
    """A folder of blobs and versions. Blocking; the supervisor calls it in a thread."""

    def __init__(self, folder: Path) -> None:
        self._blobs = folder / "blobs"
        self._versions = folder / "versions"
        self._incoming = folder / "incoming"
        self._locks = tuple(threading.Lock() for _ in range(16))
        """For the files whose digest begins with 0, 1, ... f: who fetches one keeps others from doing so."""
        for each in (self._blobs, self._versions, self._incoming):
            each.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(OSError):  # a disk that was made read-only keeps it
            for left in self._incoming.iterdir():  # of a start that was cut short
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def folder_of(self, key: VersionKey) -> Path:
        """Where the files of a version stand once `prepare` has put them there.

        Raises:
            Invalid: the key is none, and might be a way out of this folder.
        """
        if not _KEY.fullmatch(key):
            raise errors.Invalid(f"{values.quoted(key, 90)} is no key of a version.")
        return self._versions / key.removeprefix("version:")

    def prepare(self, spec: VersionSpec, fetch: Fetch) -> Path:
        """Have all files of a version here, fetching what is missing. Returns their folder.

        Raises:
            DigestMismatch: what was fetched is not what the manifest names.
            Unavailable: it cannot be fetched just now.
            StorageFull: there is no room for it.
        """
        folder = self.folder_of(spec.key)
        if folder.is_dir():
            with contextlib.suppress(OSError):  # it may then be swept too soon, and that is all
                os.utime(folder)
            return folder
        beside = self._incoming / folder.name
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(mode=0o700)
            for entry in spec.files:
                values.check_path(entry.path)
                target = beside / entry.path
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                blob = self._blob(entry, fetch)
                try:
                    os.link(blob, target)
                except OSError:
                    shutil.copyfile(blob, target)
                target.chmod(0o400)
            os.rename(beside, folder)
        except OSError as problem:
            shutil.rmtree(beside, ignore_errors=True)
            raise errors.StorageFull(
                f"The files of {spec.label} cannot be kept: {problem.strerror}."
            ) from problem
        return folder

    def _blob(self, entry: FileEntry, fetch: Fetch) -> Path:
        """The file itself: fetched once, also when two versions that share it are prepared at a time."""
        blob = self._blobs / values.check_digest(entry.digest).removeprefix("sha256:")
        with self._locks[int(blob.name[0], 16)]:
            if not (blob.is_file() and blob.stat().st_size == entry.size_bytes):
                self._fetch(entry, fetch, blob)
        return blob

    def _fetch(self, entry: FileEntry, fetch: Fetch, blob: Path) -> None:
        part = self._incoming / f"{blob.name}.part"
        hasher, size = hashlib.sha256(), 0
        with open(part, "wb") as file:
            for chunk in fetch(entry.digest):
                size += len(chunk)
                if size > entry.size_bytes:
                    break
                hasher.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size != entry.size_bytes or hasher.hexdigest() != blob.name:
            part.unlink()
            raise errors.DigestMismatch(
                f"The file {entry.path!r} arrived with other bytes than its manifest names.",
                path=entry.path,
            )
        part.chmod(0o400)
        os.replace(part, blob)

    def discard(self, spec: VersionSpec) -> None:
        """Throw a version and its blobs out, so that the next `prepare` fetches them anew."""
        shutil.rmtree(self.folder_of(spec.key), ignore_errors=True)
        for entry in spec.files:
            (self._blobs / entry.digest.removeprefix("sha256:")).unlink(missing_ok=True)

    def sweep(self, keep: Collection[VersionKey]) -> int:
        """Drop versions that no route names, but for the most recently used ones. Returns how many went."""
        named = {key.removeprefix("version:") for key in keep}
        unused = [folder for folder in self._versions.iterdir() if folder.name not in named]
        unused.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        gone = unused[UNUSED_VERSIONS_KEPT:]
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        if gone:
            for blob in self._blobs.iterdir():
                if blob.stat().st_nlink == 1:  # no version's folder links to it any more
                    blob.unlink(missing_ok=True)
        return len(gone)


def verify(spec: VersionSpec, folder: Path) -> dict[str, bytes]:
    """Read every file of a version once, check it, and return the bytes that were checked.

    Raises:
        DigestMismatch: a file is missing or is not what the manifest names.
    """
    contents: dict[str, bytes] = {}
    for entry in spec.files:
        try:
            data = (folder / entry.path).read_bytes()
        except OSError as problem:
            raise errors.DigestMismatch(
                f"The file {entry.path!r} cannot be read: {problem.strerror}."
            ) from problem
        if "sha256:" + hashlib.sha256(data).hexdigest() != entry.digest:
            raise errors.DigestMismatch(
                f"The file {entry.path!r} of {spec.label} was changed on this machine; it is not loaded.",
                path=entry.path,
            )
        contents[entry.path] = data
    return contents
