"""Bytes between a person's disk and the registry: hashing, uploads that go on after a break, downloads that
are checked.

Nothing is held whole in memory. What arrives is written beside its place, verified against its digest, and
only then moved there; what is in the way and differs is left alone. Which routes there are is `client`'s
business: this file is given functions that send and fetch.
"""

import hashlib
import os
import random
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.catalog import Draft, FileEntry
from modelkeep.core.media import media_type
from modelkeep.core.values import Digest

if TYPE_CHECKING:
    import socket

CHUNK_BYTES = 1024 * 1024
"""Bytes of a file that are in memory at a time."""
SEND_BYTES = 8 * 1024 * 1024
"""Bytes that the kernel is asked to send at a time: large enough to cost nothing, small enough to show
progress.
"""
CHUNKS_WAITING = 8
"""Pieces that have come and are not written yet; more, and the sender is made to wait."""
STALLS_MAX = 6
"""Times in a row that an upload or download may break without having moved on; then it is given up."""
STALL_FIRST_S = 0.2
"""The wait after the first break; doubled for each further one."""
PARTS_FOLDER = ".modelkeep"
"""In the folder that is pulled to: where files stand until they are whole and verified."""
IGNORED = frozenset({PARTS_FOLDER, ".git", "__pycache__", ".ipynb_checkpoints", ".DS_Store"})
"""Names that are left out when a folder is registered: no model consists of them."""


class Progress(Protocol):
    """Told how far a long transfer is: what is done (`hash`, `upload`, `download`), bytes so far, bytes in
    all.
    """

    def __call__(self, phase: str, done_bytes: int, total_bytes: int) -> None: ...


def silent(phase: str, done_bytes: int, total_bytes: int) -> None:
    """The progress of who does not want to know."""


def _part_of(progress: Progress, phase: str, before: int, total: int) -> Callable[[int], None]:
    """The progress of one file as part of the progress of all."""

    def tell(done: int) -> None:
        progress(phase, before + done, total)

    return tell


class LocalFile(Struct, frozen=True):
    """A file to register: where it is, and what it will be called in the version."""

    source: Path
    path: str
    size_bytes: int


def find_files(root: Path) -> list[LocalFile]:
    """The files that a path stands for: itself, or all below it in order.

    Raises:
        InvalidManifest: nothing there, a link that leads out of the folder, or something that is no file.
        LimitExceeded: more files than a version may have.
    """
    try:
        mode = root.stat().st_mode
    except OSError as problem:
        raise errors.InvalidManifest(f"{root} cannot be read: {problem.strerror}.", field="path") from problem
    if stat.S_ISREG(mode):
        return [LocalFile(root, values.check_path(root.name), root.stat().st_size)]
    if not stat.S_ISDIR(mode):
        raise errors.InvalidManifest(f"{root} is neither a file nor a folder.", field="path")
    found: list[LocalFile] = []
    for file in _walk(root, root.resolve()):
        if len(found) >= values.FILES_MAX:
            raise errors.LimitExceeded(
                f"{root} has more than {values.FILES_MAX:,} files; pack small ones together."
            )
        path = values.check_path(file.relative_to(root).as_posix())
        found.append(LocalFile(file, path, file.stat().st_size))
    if not found:
        raise errors.InvalidManifest(f"{root} is empty; a version needs at least one file.", field="path")
    return found


def _walk(folder: Path, top: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name in IGNORED:
            continue
        if entry.is_symlink() and not entry.resolve().is_relative_to(top):
            raise errors.InvalidManifest(
                f"{entry} links to a place outside the folder; copy the file or leave the link out.",
                field="path",
            )
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry, top)
        elif entry.is_file():
            yield entry
        else:
            raise errors.InvalidManifest(
                f"{entry} is no file that could be registered; remove it.", field="path"
            )


def hash_files(files: Sequence[LocalFile], progress: Progress = silent) -> tuple[FileEntry, ...]:
    """Read each file once and name it by its digest. Sizes are those of the bytes that were hashed.

    Raises:
        InvalidManifest: a file cannot be read.
    """
    total, before, entries = sum(file.size_bytes for file in files), 0, []
    for file in files:
        try:
            with open(file.source, "rb") as source:
                digest, size = _digest(source, _part_of(progress, "hash", before, total))
        except OSError as problem:
            raise errors.InvalidManifest(
                f"{file.source} cannot be read: {problem.strerror}.", field="path"
            ) from problem
        before += size
        entries.append(
            FileEntry(path=file.path, size_bytes=size, digest=digest, media_type=media_type(file.path))
        )
    return tuple(entries)


def _digest(source: IO[bytes], progress: Callable[[int], None]) -> tuple[Digest, int]:
    found, size = hashlib.sha256(), 0
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    while count := source.readinto(buffer):  # type: ignore[attr-defined]  # open(..., "rb") has it, IO does not say
        found.update(view[:count])
        size += count
        progress(size)
    return Digest("sha256:" + found.hexdigest()), size


class FileBody:
    """The rest of a file from an offset, handed to the kernel without passing through our memory."""

    def __init__(
        self, source: IO[bytes], offset: int, size_bytes: int, progress: Callable[[int], None]
    ) -> None:
        self._source = source
        self._offset = offset
        self._progress = progress
        self.size_bytes = size_bytes - offset

    def send_to(self, connection: "socket.socket") -> None:
        """Write exactly the announced bytes.

        Raises:
            InvalidManifest: the file has become shorter since it was hashed.
        """
        sent = 0
        while sent < self.size_bytes:
            wanted = min(SEND_BYTES, self.size_bytes - sent)
            count = connection.sendfile(self._source, self._offset + sent, wanted)
            if count == 0:
                raise errors.InvalidManifest(
                    f"{self._source.name} became shorter while it was sent; register it again.", field="path"
                )
            sent += count
            self._progress(self._offset + sent)


class Uploads(Protocol):
    """What an upload asks of the client."""

    def get_draft(self, draft: str, /) -> Draft: ...

    def upload_file(self, draft: str, path: str, offset: int, body: FileBody, /) -> object: ...


def send_missing(
    uploads: Uploads, draft: Draft, sources: Mapping[str, Path], progress: Progress = silent
) -> None:
    """Send the bytes of a draft that are not there yet, from where each file stands; go on after breaks.

    Raises:
        Unavailable: the connection broke, or the server could not, again and again; `details.draft` names the
        draft to go on with. InvalidManifest, DigestMismatch: a file is not what was announced; it changed
        meanwhile.
    """
    total = sum(file.size_bytes for file in draft.files)
    done = sum(file.size_bytes for file in draft.files if file.present)
    sent: set[str] = set()
    for file in draft.files:
        if file.present:
            continue
        if file.digest in sent and _state(uploads.get_draft(draft.id), file.path).present:
            done += file.size_bytes
            continue
        with open(sources[file.path], "rb") as source:
            before = done
            _send_one(
                uploads, draft.id, file.path, file.offset, source, file.size_bytes,
                _part_of(progress, "upload", before, total),
            )  # fmt: skip
        sent.add(file.digest)
        done += file.size_bytes


def _send_one(
    uploads: Uploads,
    draft: str,
    path: str,
    offset: int,
    source: IO[bytes],
    size_bytes: int,
    progress: Callable[[int], None],
) -> None:
    stalls, known = 0, True
    while True:
        try:
            if not known:
                state = _state(uploads.get_draft(draft), path)
                if state.present:
                    return
                if state.offset > offset:
                    stalls = 0
                offset, known = min(state.offset, size_bytes), True
            uploads.upload_file(draft, path, offset, FileBody(source, offset, size_bytes, progress))
            return
        except errors.OffsetMismatch as problem:
            arrived = int(problem.details.get("offset", 0))
            # Told the same offset twice counts too, so that two who disagree do not go on for ever.
            stalls = 0 if arrived > offset else stalls + 1
            if stalls >= STALLS_MAX:
                raise
            offset = min(arrived, size_bytes)
        except errors.Unavailable as problem:
            problem.details["draft"] = draft
            stalls, known = stalls + 1, False
            if stalls >= STALLS_MAX or isinstance(problem, errors.StorageFull):
                raise
            time.sleep(STALL_FIRST_S * 2 ** (stalls - 1) * random.uniform(0.75, 1.25))


def _state(draft: Draft, path: str) -> "_Where":
    for file in draft.files:
        if file.path == path:
            return _Where(file.offset, file.present)
    raise errors.InvalidManifest(f"The draft {draft.id} has no file {path!r}.", field="path")


class _Where(Struct, frozen=True):
    offset: int
    present: bool


# ------------------------------------------------------------------------------------------------------------
# download


class Fetch(Protocol):
    """Opens the bytes of one file from an offset, as pieces."""

    def __call__(self, path: str, offset: int) -> Iterator[bytes]: ...


def fetch_into(
    fetch: Fetch,
    entries: tuple[FileEntry, ...],
    folder: Path,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> tuple[int, int]:
    """Bring files into a folder. Files that are there already and equal are left; a break goes on where it
    was.

    Returns:
        How many files were fetched, and how many were there already.

    Raises:
        Conflict: another file is in the way, and `overwrite` was not said. Nothing was fetched then.
        DigestMismatch: what arrived is not what the registry announced; it was thrown away.
        Invalid: the folder cannot be written.
    """
    for entry in entries:
        values.check_path(entry.path)
    total, done, fetched = sum(entry.size_bytes for entry in entries), 0, 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        missing = [entry for entry in entries if not _is_there(folder, entry, overwrite)]
        parts = folder / PARTS_FOLDER
        done = total - sum(entry.size_bytes for entry in missing)
        for entry in missing:
            parts.mkdir(exist_ok=True)
            before = done
            part = parts / f"{entry.digest.removeprefix('sha256:')}.part"
            _fetch_one(fetch, entry, part, _part_of(progress, "download", before, total))
            target = _inside(folder, entry.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, target)
            done += entry.size_bytes
            fetched += 1
        if missing and not any(parts.iterdir()):
            parts.rmdir()
    except OSError as problem:
        raise errors.Invalid(
            f"{problem.filename or folder} cannot be written: {problem.strerror}."
        ) from problem
    return fetched, len(entries) - fetched


def _inside(folder: Path, path: str) -> Path:
    """The place of a file below the folder; a link that leads out of it is not followed."""
    target = folder.joinpath(*path.split("/"))
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise errors.InvalidManifest(f"{target.parent} leads out of {folder}; remove the link.", field="path")
    return target


def _is_there(folder: Path, entry: FileEntry, overwrite: bool) -> bool:
    target = _inside(folder, entry.path)
    if not target.exists() and not target.is_symlink():
        return False
    if target.is_file() and not target.is_symlink() and target.stat().st_size == entry.size_bytes:
        with open(target, "rb") as file:
            if _digest(file, lambda _: None)[0] == entry.digest:
                return True
    if overwrite and not target.is_dir():
        return False
    raise errors.Conflict(
        f"{target} is there already and is another file; pull to another folder, or say that it "
        "may be replaced (--force).",
        path=str(target),
    )


class _Part:
    """A file that is not whole yet: what has come of it, hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._found = hashlib.sha256()
        self.size_bytes = 0

    def recall(self) -> None:
        """Take in what an earlier pull left."""
        while chunk := self._file.read(CHUNK_BYTES):
            self._found.update(chunk)
            self.size_bytes += len(chunk)

    def take(self, chunk: bytes) -> None:
        """Hash and write what came next."""
        self._found.update(chunk)
        rest = memoryview(chunk)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.size_bytes += len(chunk)

    def take_all(self, chunks: Iterator[bytes], most: int, progress: Callable[[int], None]) -> None:
        """Hash and write in a thread beside the one that receives: both wait for other things than each
        other.
        """
        from collections import deque
        from concurrent.futures import Future, ThreadPoolExecutor

        waiting: deque[Future[None]] = deque()
        received = self.size_bytes
        try:
            with ThreadPoolExecutor(1) as beside:
                for chunk in chunks:
                    received += len(chunk)
                    if received > most:
                        break
                    if len(waiting) == CHUNKS_WAITING:
                        waiting.popleft().result()
                    waiting.append(beside.submit(self.take, chunk))
                    progress(received)
        finally:
            for done in waiting:
                done.result()  # a full disk is told before a broken connection

    def is_whole(self, entry: FileEntry) -> bool:
        """Whether the bytes are those of the entry."""
        return self.size_bytes == entry.size_bytes and f"sha256:{self._found.hexdigest()}" == entry.digest


def _fetch_one(fetch: Fetch, entry: FileEntry, place: Path, progress: Callable[[int], None]) -> None:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(place, flags, 0o644), "r+b", buffering=0) as file:
        part, stalls = _Part(file), 0
        part.recall()
        while part.size_bytes < entry.size_bytes:
            before = part.size_bytes
            try:
                part.take_all(fetch(entry.path, before), entry.size_bytes, progress)
                if part.size_bytes < entry.size_bytes:
                    raise errors.ServerUnavailable(
                        f"{entry.path} broke off at {part.size_bytes:,} bytes; run the same again."
                    )
            except (errors.ServerUnavailable, errors.TimedOut):
                stalls = 0 if part.size_bytes > before else stalls + 1
                if stalls >= STALLS_MAX:
                    raise
                time.sleep(STALL_FIRST_S * 2**stalls * random.uniform(0.75, 1.25))
    if not part.is_whole(entry):
        place.unlink(missing_ok=True)
        raise errors.DigestMismatch(
            f"The bytes that arrived for {entry.path!r} are not those that were registered; pull again, and "
            "run 'modelkeep verify' on the version if it stays so.",
            path=entry.path,
        )
