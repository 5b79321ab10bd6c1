"""The prediction log on disk: written by one recorder, readable by anybody at any moment.

A folder per endpoint. Rows first go to a stream (`.arrows`) that is only appended to, in whole batches, so
that a recorder that is killed leaves everything before its last batch; a stream that is large or old enough
becomes a Parquet file under its final name in one step. Over the bound the oldest files go first, of
whichever endpoint. A full disk loses rows, which is counted, and never the files there are. Which rows there
are is not decided here.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote

from msgspec import Struct

from modelkeep import telemetry
from modelkeep.core import errors
from modelkeep.core.routing import VersionKey

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "predictions"
"""In the gateway's data folder."""
STREAM, PARQUET, DRAFT = ".arrows", ".parquet", ".draft"
STREAM_MAX_BYTES = 16 * 1024 * 1024
"""A stream becomes a Parquet file at this size: one file is read and written whole, in a second."""
STREAM_MAX_S = 900.0
"""Or at this age, so that other tools, which read Parquet alone, see yesterday's rows today."""
STREAMS_MAX = 64
"""Streams open at a time: endpoints and versions logged at once. For a further one the oldest is closed."""
_TIME = "%Y%m%dT%H%M%S%fZ"

log = telemetry.Log("gateway.log")


class LogState(Struct, frozen=True, kw_only=True):
    """How the log stands since its start. `size_bytes` is of all files; `problem` says why rows are lost."""

    rows: int = 0
    lost: int = 0
    size_bytes: int = 0
    problem: str | None = None


def endpoint_folder(data: Path, endpoint: str) -> Path:
    """Where an endpoint's files are; whatever its name, below the log's folder."""
    name = quote(endpoint, safe="")
    return data / FOLDER / (f"%2E{name[1:]}" if name.startswith(".") else name)


class _Stream:
    """One open stream: an endpoint's rows of one version and form."""

    def __init__(self, path: Path, schema: "pa.Schema") -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = path
        self.schema = schema
        self.opened = time.monotonic()
        self.size_bytes = 0
        self._file: IO[bytes] = open(path, "xb", buffering=0)  # noqa: SIM115 - closed by `close`
        os.fchmod(self._file.fileno(), 0o600)
        try:
            self._append(schema.serialize())
        except OSError:
            self.close()
            path.unlink(missing_ok=True)
            raise

    def append(self, batch: "pa.RecordBatch") -> None:
        """Add rows: all of them, or, when the disk is full, none. Raises OSError."""
        self._append(batch.serialize())

    def _append(self, data: "pa.Buffer") -> None:
        view = memoryview(data)
        written = 0
        try:
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError:
            # What was written of it must not stand before the next batch.
            self._file.truncate(self.size_bytes)
            self._file.seek(self.size_bytes)
            raise
        self.size_bytes += len(view)

    def close(self) -> None:
        """No more rows."""
        self._file.close()


class PredictionLog:
    """The writer. There is one at a time, which the gateway's lock on its folder sees to."""

    def __init__(self, data: Path, *, max_bytes: int) -> None:
        self._data = data
        self._max_bytes = max_bytes
        self._streams: dict[tuple[str, VersionKey], _Stream] = {}
        self._rows = 0
        self._lost = 0
        self._size_bytes = 0
        self._problem: str | None = None
        self._number = 0

    @property
    def state(self) -> LogState:
        """How it stands."""
        return LogState(rows=self._rows, lost=self._lost, size_bytes=self._size_bytes, problem=self._problem)

    def open(self) -> None:
        """Take up what a former recorder left: its streams become Parquet files, as far as they are whole."""
        (self._data / FOLDER).mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in (self._data / FOLDER).glob(f"*/*{DRAFT}"):
            path.unlink(missing_ok=True)
        for path in sorted((self._data / FOLDER).glob(f"*/*{STREAM}")):
            self._settle(path)
        self.keep_bound()

    def lost(self, rows: int, problem: str) -> None:
        """Count rows that could not be kept."""
        self._lost += rows
        if problem != self._problem:
            log.error("Predictions cannot be logged.", error=problem)
        self._problem = problem

    def append(self, endpoint: str, key: VersionKey, batch: "pa.RecordBatch") -> None:
        """Keep rows. Never raises for the disk: what could not be kept is counted."""
        try:
            stream = self._stream(endpoint, key, batch.schema)
            stream.append(batch)
        except OSError as problem:
            self.lost(batch.num_rows, f"{problem.strerror or problem}")
            self.keep_bound(need_bytes=STREAM_MAX_BYTES)
            return
        self._rows += batch.num_rows
        self._problem = None
        if stream.size_bytes >= STREAM_MAX_BYTES:
            self._close(endpoint, key)

    def _stream(self, endpoint: str, key: VersionKey, schema: "pa.Schema") -> _Stream:
        stream = self._streams.get((endpoint, key))
        if stream is not None and stream.schema.equals(schema):
            return stream
        if stream is not None:  # the privacy filter is another one
            self._close(endpoint, key)
        if len(self._streams) >= STREAMS_MAX:
            self._close(*min(self._streams, key=lambda which: self._streams[which].opened))
        self._number += 1
        name = f"{datetime.now(UTC).strftime(_TIME)}-{self._number:04x}-{key.rpartition(':')[2][:12]}{STREAM}"
        stream = self._streams[endpoint, key] = _Stream(endpoint_folder(self._data, endpoint) / name, schema)
        return stream

    def turn(self, now: float) -> None:
        """Close streams that are old enough, and keep the bound.

        Args:
            now: monotonic seconds.
        """
        for which, stream in list(self._streams.items()):
            if now - stream.opened >= STREAM_MAX_S:
                self._close(*which)
        self.keep_bound()

    def close(self) -> None:
        """Make Parquet files of all streams."""
        for which in list(self._streams):
            self._close(*which)

    def _close(self, endpoint: str, key: VersionKey) -> None:
        stream = self._streams.pop((endpoint, key))
        stream.close()
        self._settle(stream.path)

    def _settle(self, path: Path) -> None:
        """Make a Parquet file of a stream that nobody writes to. What cannot be made now stays as it is and
        is tried again at the next start."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        final, draft = path.with_suffix(PARQUET), path.with_suffix(DRAFT)
        try:
            if not final.exists():
                batches = list(read_stream(path))
                if batches:
                    with open(draft, "xb") as file:
                        os.fchmod(file.fileno(), 0o600)
                        pq.write_table(pa.Table.from_batches(batches), file, compression="zstd")
                        file.flush()
                        os.fsync(file.fileno())
                    draft.rename(final)
            path.unlink(missing_ok=True)
        except OSError as problem:
            draft.unlink(missing_ok=True)
            log.error("A part of the prediction log stays a stream.", file=path.name, error=str(problem))

    def keep_bound(self, *, need_bytes: int = 0) -> None:
        """Remove the oldest files until all fit the bound.

        Args:
            need_bytes: room to make below the bound, where the disk itself is full.
        """
        writing = {stream.path for stream in self._streams.values()}
        sizes: list[tuple[str, Path, int]] = []
        for path in (self._data / FOLDER).glob("*/*"):
            if path.suffix in (STREAM, PARQUET):
                with contextlib.suppress(OSError):
                    sizes.append((path.name, path, path.stat().st_size))
        total = sum(size for _, _, size in sizes)
        bound = min(self._max_bytes, total - need_bytes) if need_bytes else self._max_bytes
        for _, path, size in sorted(sizes):
            if total <= bound:
                break
            if path not in writing:
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= size
        self._size_bytes = total


# -----------------------------------------------------------------------------------------------------
# reading


def read_stream(path: Path) -> "Iterator[pa.RecordBatch]":
    """The batches of a stream that are whole; the last one may be cut off."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
            yield from stream
    except (pa.ArrowException, OSError, EOFError) as problem:
        log.debug("A stream ends in the middle of a batch.", file=path.name, error=str(problem))


def read(
    data: Path, endpoint: str, *, since: datetime | None = None, until: datetime | None = None
) -> "Iterator[pa.Table]":
    """An endpoint's rows, oldest file first, a table for each file. Files of different versions have
    different columns.

    Args:
        since: rows answered at this moment or later.
        until: rows answered before this moment.

    Raises:
        RouteNotFound: nothing was ever logged for the endpoint here.
        ExtraMissing: the library that reads Parquet is not installed.
    """
    require_library()
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    folder = endpoint_folder(data, endpoint)
    if not folder.is_dir():
        raise errors.RouteNotFound(
            f"No predictions of {endpoint!r} are logged in {data}; name another gateway's folder with "
            "--data, or have them logged: modelkeep endpoint create --help (--log)."
        )
    for stem in sorted({path.stem for path in folder.iterdir() if path.suffix in (STREAM, PARQUET)}):
        final, stream = folder / f"{stem}{PARQUET}", folder / f"{stem}{STREAM}"
        try:
            # A stream becomes a file at any moment: look for the file last, and again.
            table = None if final.exists() else pa.Table.from_batches(list(read_stream(stream)))
        except (pa.ArrowException, ValueError):
            table = None
        if table is None:
            try:
                table = pq.read_table(final)
            except FileNotFoundError:  # removed for the bound, or a stream without rows
                continue
        for bound, keep in ((since, pc.greater_equal), (until, pc.less)):
            if bound is not None:
                table = table.filter(keep(table["at"], pa.scalar(bound, type=table.schema.field("at").type)))
        if table.num_rows:
            yield table


def require_library() -> None:
    """Raises ExtraMissing when Parquet cannot be read and written here."""
    try:
        import pyarrow as pa  # noqa: F401 - only whether it is there
    except ImportError as problem:
        raise errors.ExtraMissing("Prediction logs need Arrow; install modelkeep[predictions].") from problem
