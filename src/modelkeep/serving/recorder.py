"""The recorder: the process that writes the prediction log, keeps feedback, and compares a shadow's answers.

Whatever is slow about that (decoding once more, compressing, a disk) is slow here and nowhere else; a front
that finds it busy drops records and goes on. It may be killed at any moment: what was flushed is whole, and
the next one takes it up. It answers no prediction and decides nothing about one.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import msgspec

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.feedback import read_feedback
from modelkeep.core.observation import PairCounts
from modelkeep.core.recording import KEEP_ALL, Privacy
from modelkeep.core.routing import Epoch, VersionKey, VersionSpec
from modelkeep.serving import frames, labels, messages, pairing, records
from modelkeep.serving.joining import Joining
from modelkeep.serving.prediction_log import FOLDER, PredictionLog, require_library
from modelkeep.serving.processes import die_with_parent, give_up_privileges, new_loop
from modelkeep.serving.shifting import Shifting
from modelkeep.serving.tables import Hasher, Rows

FLUSH_S = 1.0
"""Rows are in memory for at most this long: what a killed recorder loses."""
FLUSH_ROWS = 5_000
"""Or until there are so many of one kind."""
SPECS_MAX = 1_000
"""Versions that are remembered after no route names them, for records that were on their way."""
ENDPOINTS_MAX = 1_000
"""Endpoints whose labels are held in memory at a time; of others they are read again."""
LOOK_S = 0.05
"""After the word to stop: between two looks whether a front has said anything."""
QUIET_LOOKS = 4
"""When none has in so many, everything has arrived. Looks and no time: a recorder that was itself held up has
heard nothing for long, and has yet to read what waits."""
KEY_FILE = "key"
"""In the log's folder: the key of hashed values."""
KEY_BYTES = 32
_STATUSES = ((errors.StorageFull, 503), (errors.LimitExceeded, 413), (errors.MalformedBody, 400))

log = telemetry.Log("gateway.recorder")

PairKey = tuple[str, str | None, Epoch, int]
"""Endpoint, rollout, epoch, and the candidate's weight in ppm: the tick that a pair belongs to."""


class Recorder:
    """What is taken down, apart from sockets."""

    def __init__(self, data: Path, *, max_bytes: int) -> None:
        self._data = data
        self._log = PredictionLog(data, max_bytes=max_bytes)
        self._specs: dict[VersionKey, VersionSpec] = {}
        self._privacy: dict[str, Privacy] = {}
        self._rows: dict[tuple[str, VersionKey], Rows] = {}
        self._labels: dict[str, labels.Labels] = {}
        self._pairs: dict[PairKey, PairCounts] = {}
        self._joining = Joining(data)
        self._shifting = Shifting()
        self._hasher: Hasher | None = None
        try:
            require_library()
            self.can_log = True
            self._log.open()
        except errors.ExtraMissing as problem:
            self.can_log = False
            log.warning("Predictions are not logged.", error=problem.message)
        except OSError as problem:
            self._log.lost(0, str(problem))

    def watch(self, watch: messages.Watch) -> None:
        """Know these versions, and treat fields as these routes say from now on."""
        privacy = {route.endpoint: route.privacy for route in watch.routes}
        for which in [which for which, rows in self._rows.items() if privacy.get(which[0]) != rows.privacy]:
            self._write(which)
            del self._rows[which]
        self._privacy = privacy
        self._joining.watch(watch.routes)
        self._shifting.watch(watch.routes)
        named = {spec.key for spec in watch.versions}
        self._specs |= {spec.key: spec for spec in watch.versions}
        for key in [key for key in self._specs if key not in named][: max(0, len(self._specs) - SPECS_MAX)]:
            del self._specs[key]

    def take(self, record: records.Logged | records.Pair | records.Predicted) -> None:
        """Take down one record. Never raises for what a caller or a model sent."""
        match record:
            case records.Logged():
                self._take_logged(record)
            case records.Predicted():
                spec, privacy = self._specs.get(record.version), self._privacy.get(record.endpoint)
                self._joining.predicted(record, spec, privacy)
                self._shifting.predicted(record, spec, privacy)
            case records.Pair():
                epoch = Epoch(record.term, record.seq)
                key = (record.endpoint, record.rollout, epoch, record.candidate_ppm)
                spec = self._specs.get(record.stable.version)
                counts = pairing.compared(record, spec.signature if spec is not None else None)
                known = self._pairs.get(key)
                self._pairs[key] = counts if known is None else known.plus(counts)
                specs = (spec, self._specs.get(record.shadow.version))
                self._joining.paired(record, specs, self._privacy.get(record.endpoint))

    def _take_logged(self, logged: records.Logged) -> None:
        which = (logged.endpoint, logged.reply.version)
        spec = self._specs.get(logged.reply.version)
        if not self.can_log or spec is None:
            self._log.lost(
                1, "the version is not known" if self.can_log else "install modelkeep[predictions]"
            )
            return
        rows = self._rows.get(which)
        if rows is None:
            hasher = self._key()
            if hasher is None:
                return
            privacy = self._privacy.get(logged.endpoint, KEEP_ALL)
            rows = self._rows[which] = Rows(spec, privacy, hasher)
        try:
            rows.add(logged)
        except Exception as problem:  # noqa: BLE001 - one odd record must not end the log
            log.failure("A request could not be logged.", endpoint=logged.endpoint)
            del self._rows[which]
            self._log.lost(rows.count + 1, f"a request could not be logged: {type(problem).__name__}")
            return
        if rows.count >= FLUSH_ROWS:
            self._write(which)

    def _key(self) -> Hasher | None:
        """The gateway's own key, made once; without it nothing can be logged as the filter asks."""
        if self._hasher is None:
            path = self._data / FOLDER / KEY_FILE
            try:
                with contextlib.suppress(FileNotFoundError):
                    key = path.read_bytes()
                    if len(key) == KEY_BYTES:
                        self._hasher = Hasher(key)
                        return self._hasher
                    path.unlink()
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                key = secrets.token_bytes(KEY_BYTES)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(key)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as problem:
                path.unlink(missing_ok=True)
                self._log.lost(1, f"the key of hashed fields cannot be kept: {problem.strerror or problem}")
                return None
            self._hasher = Hasher(key)
        return self._hasher

    def _write(self, which: tuple[str, VersionKey]) -> None:
        rows = self._rows[which]
        if rows.count:
            self._log.append(*which, rows.take())

    def flush(self) -> None:
        """Write what waits."""
        for which in self._rows:
            self._write(which)

    def turn(self) -> None:
        """What time does to files, and forgetting what has not been used."""
        if self.can_log:
            self._log.turn(time.monotonic())
        if len(self._rows) > SPECS_MAX:
            self._rows = {which: rows for which, rows in self._rows.items() if which[1] in self._specs}

    def close(self) -> None:
        """Write everything and finish the files."""
        self.flush()
        self._log.close()
        self._joining.close()

    def noted(self) -> messages.Noted:
        """What there is to tell the supervisor: pairs and labels since the last time, and how the log
        stands."""
        pairs, self._pairs = self._pairs, {}
        for key, counts in self._joining.noted_pairs().items():
            known = pairs.get(key)
            pairs[key] = counts if known is None else known.plus(counts)
        state = self._log.state
        return messages.Noted(
            pairs=[
                messages.PairsOf(
                    endpoint=name, rollout=rollout, epoch=epoch, candidate_ppm=ppm, counts=counts
                )
                for (name, rollout, epoch, ppm), counts in pairs.items()
            ],
            labels=self._joining.noted(),
            bands=self._shifting.noted(),
            rows=state.rows,
            lost=state.lost,
            size_bytes=state.size_bytes,
            problem=state.problem,
        )

    def feedback(self, feedback: records.Feedback) -> records.Kept:
        """Keep labels, and say what became of them."""
        name = feedback.endpoint
        try:
            given = read_feedback(feedback.body)
            kept = self._labels.get(name)
            if kept is None:
                if len(self._labels) >= ENDPOINTS_MAX:
                    del self._labels[next(iter(self._labels))]
                kept = self._labels[name] = labels.Labels(self._data, name)
            taken = kept.take(given, datetime.now(UTC))
            self._joining.labelled(name, given)
        except errors.ModelkeepError as refusal:
            status = next((status for kind, status in _STATUSES if isinstance(refusal, kind)), 422)
            document = {"code": refusal.code, "detail": refusal.message, **refusal.details}
            return records.Kept(feedback.number, status, codec.encode(document))
        return records.Kept(feedback.number, 200, codec.encode(taken))


class _FromFront(asyncio.Protocol):
    """One front's connection."""

    def __init__(self, server: "_Server") -> None:
        self._server = server
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        self._server.fronts.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.fronts.discard(self)

    def data_received(self, data: bytes) -> None:
        self._server.heard = time.monotonic()
        recorder = self._server.recorder
        assert self._transport is not None
        try:
            for _, _, payload in self._reader.feed(data):
                record = records.to_recorder(payload)
                if isinstance(record, records.Feedback):
                    self._transport.write(records.pack(recorder.feedback(record)))
                else:
                    recorder.take(record)
        except (errors.ModelkeepError, msgspec.MsgspecError) as problem:  # out of step: it connects anew
            log.error("A front speaks nonsense.", error=str(problem))
            self._transport.abort()


class _Server:
    """The sockets and clocks around a recorder."""

    def __init__(self, recorder: Recorder, channel: asyncio.Transport) -> None:
        self.recorder = recorder
        self.fronts: set[_FromFront] = set()
        self.heard = time.monotonic()
        self._channel = channel

    async def run(self, stopping: asyncio.Event) -> None:
        """Flush and tell about once a second, until told to stop; then take in what is still coming."""
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await stopping.wait()
            self.recorder.flush()
            self.recorder.turn()
            self.tell()
        looks = 0
        while self.fronts and looks < QUIET_LOOKS:
            heard = self.heard
            await asyncio.sleep(LOOK_S)
            looks = looks + 1 if self.heard == heard else 0
        self.recorder.close()
        self.tell()

    def tell(self) -> None:
        """Say how things stand."""
        self._channel.write(messages.pack(self.recorder.noted()))


class _Supervisor(asyncio.Protocol):
    """The channel to the supervisor; when it ends, everything is written and the process ends."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._recorder: Recorder | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self.ended = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if self._recorder is not None:
            self._recorder.flush()
        os._exit(0)

    def data_received(self, data: bytes) -> None:
        for _, _, payload in self._reader.feed(data):
            message: messages.ToRecorder = messages.unpack(payload, messages.ToRecorder)  # type: ignore[arg-type]  # a union
            match message:
                case messages.Watch():
                    if self._recorder is None:
                        self._begin(message)
                    assert self._recorder is not None
                    self._recorder.watch(message)
                case messages.Stop():
                    self._stopping.set()

    def _begin(self, watch: messages.Watch) -> None:
        telemetry.configure(level=watch.log_level)
        self._recorder = Recorder(Path(watch.data), max_bytes=watch.max_bytes)
        self._task = asyncio.get_running_loop().create_task(self._serve(self._recorder, watch.path))

    async def _serve(self, recorder: Recorder, path: str) -> None:
        assert self._transport is not None
        server = _Server(recorder, self._transport)
        listener = await asyncio.get_running_loop().create_unix_server(lambda: _FromFront(server), path)
        server.tell()  # the first word: fronts may connect
        try:
            await server.run(self._stopping)
        finally:
            listener.close()
            self.ended.set()


async def _run(channel: socket.socket) -> None:
    supervisor = _Supervisor()
    await asyncio.get_running_loop().create_unix_connection(lambda: supervisor, sock=channel)
    await supervisor.ended.wait()


def main(arguments: list[str]) -> None:
    """Run a recorder. Arguments: the parent's pid and the channel's descriptor."""
    parent, channel_fd = int(arguments[0]), int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent)
    give_up_privileges(0)
    os.set_inheritable(channel_fd, False)
    with new_loop() as runner:
        runner.run(_run(socket.socket(fileno=channel_fd)))
