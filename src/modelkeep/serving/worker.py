"""A worker: a process of one model version. It loads verified files, then answers frames, together where it
can.

One thread, on purpose: a model is asked one thing at a time, and a request that hangs or kills it hurts this
process only. What arrives while the model computes is read afterwards, all of it, and taken together by the
batcher. Queues are bounded by the fronts, deadlines travel with the requests, and what has expired in the
queue, or lost its caller, is not computed. It trusts nothing it is sent and knows no route, no weight and no
other version.
"""

import contextlib
import faulthandler
import gc
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.observation import FieldMisses
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import DataType, Field
from modelkeep.serving import batcher, frames, golden, leniency, messages, protocols, runtimes, validation
from modelkeep.serving.batcher import Ask, Queue
from modelkeep.serving.cache import verify
from modelkeep.serving.devices import VISIBLE, Device
from modelkeep.serving.frames import Kind
from modelkeep.serving.growth import Growth
from modelkeep.serving.messages import Door
from modelkeep.serving.options import ERROR_TEXT_MAX, FRAME_MAX_BYTES
from modelkeep.serving.processes import die_with_parent, give_up_privileges, limit_memory
from modelkeep.serving.upstream import ALONE, LENIENT, PREFIX

READ_BYTES = 256 * 1024
"""Taken from one front at a time, so that none starves the others."""
TURN_S = 0.0005
"""Calls are made one after the other for this long before answers go out and what has arrived is read: many
small ones share a write and a read, a slow one waits for none."""
COLLECT_AFTER = (10_000, 20, 50)
"""When the garbage collector looks: a request leaves nothing behind for it, but a model's own code may."""
TELL_S = 1.0
"""Between two words to the supervisor about what was done."""
QUIET_S = 0.3
"""After the word to stop, go when nothing has come for this long: what was sent before the swap has then
arrived. Where every front has closed its connection nothing can come, and nobody waits."""
_NOT_THE_CARDS = (errors.DigestMismatch, errors.NotAllowed)
"""What goes wrong with a version wherever it is loaded."""
_STATUSES = ((errors.MalformedBody, 400), (errors.LimitExceeded, 413))

log = telemetry.Log("gateway.worker")


class _NotRowByRow(Exception):
    """The model's answer for several rows does not have one row for each."""


class Service:
    """A loaded version as a function from requests to answers."""

    def __init__(
        self, spec: VersionSpec, runtime: runtimes.Runtime, memory_bytes: int = 0, *, on_card: bool = False
    ) -> None:
        self._runtime = runtime
        self._held_bytes = telemetry.memory_bytes if on_card else telemetry.mapped_bytes
        """What counts against the limit: of all that CUDA maps, only what is resident."""
        self._growth = Growth(memory_bytes, self._held_bytes(os.getpid()))
        self.runtime_name = runtime.name
        self._label = spec.label
        self._semver = spec.semver
        self._decoder = protocols.Decoder(spec.signature)
        self._misses = leniency.Misses(spec.signature)
        self._outputs = spec.signature.outputs if spec.signature is not None else ()
        self._inputs = spec.signature.inputs if spec.signature is not None else ()
        self.together = not getattr(runtime, "single", False)
        """Whether rows of several requests may share a call of the model."""

    def read(self, ask: Ask[Any]) -> tuple[Kind, bytes] | None:
        """Check one request by itself. Returns the refusal where it is refused."""
        _, _, number, length = PREFIX.unpack_from(ask.payload)
        start = PREFIX.size + length
        try:
            door = Door(number & ~(ALONE | LENIENT))
            asked = self._decoder.decode(door, ask.payload[start:], lenient=bool(number & LENIENT))
        except errors.ModelkeepError as refusal:
            if isinstance(refusal, errors.InvalidInput):
                self._misses.refuse(refusal.details.get("field"))
            return Kind.REFUSED, _refusal(refusal)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this request's fault alone
            return Kind.FAILED, _blame(problem)
        ask.content = door, ask.payload[PREFIX.size : start], asked
        ask.rows = asked.rows
        if asked.missed:
            self._misses.fit(asked.missed)
        return None

    def misses(self) -> FieldMisses:
        """What requests missed of the signature since this was last asked."""
        return self._misses.hand_over()

    def key(self, ask: Ask[Any]) -> Hashable:
        """What requests must have in common to share a call of the model."""
        return batcher.shape_of(ask.content[2].columns)

    def settle(self, asks: Sequence[Ask[Any]]) -> Iterator[tuple[Ask[Any], Kind, bytes]]:
        """Answer requests that were read, by one call of the model where that goes well. Never raises:
        whatever the model does is the version's fault, not the worker's."""
        for ask, outcome in batcher.bisected(asks, self._attempt, _late):
            if outcome is None:
                yield ask, Kind.EXPIRED, b""
            elif isinstance(outcome, errors.ModelkeepError):
                yield ask, Kind.REFUSED, _refusal(outcome)
            elif isinstance(outcome, BaseException):
                yield ask, Kind.FAILED, _blame(outcome)
            else:
                yield ask, *outcome

    def _attempt(self, asks: Sequence[Ask[Any]]) -> list[tuple[Kind, bytes]]:
        rows = [ask.rows for ask in asks]
        try:
            outputs = self._runtime.predict(batcher.merged([ask.content[2].columns for ask in asks]))
        except MemoryError:
            self._run_out()
            raise
        own = batcher.parted(outputs, rows)
        if own is None:
            self.together = False
            log.warning(
                "The version's answers are not row by row; it gets one request a call.", version=self._label
            )
            raise _NotRowByRow
        if validation.output_problem(self._outputs, outputs, sum(rows)) is None:
            return [self._worded(ask, table) for ask, table in zip(asks, own, strict=True)]
        return [self._doubted(ask, table, len(asks)) for ask, table in zip(asks, own, strict=True)]

    def _run_out(self) -> None:
        """A call was refused memory. Where little of that is left every other call would be, too: the process
        ends, and whoever waits in it is answered by one that begins anew. Otherwise the call asked for too
        much."""
        if self._growth.past(self._held_bytes(os.getpid())):
            log.error("The version has used up its limit of memory; its process ends.", version=self._label)
            os._exit(1)

    def _doubted(self, ask: Ask[Any], outputs: validation.Columns, sharers: int) -> tuple[Kind, bytes]:
        """One request's answer from a call in which some output broke the signature. Where it is its own, it
        is asked for again by itself: another's rows may have spoilt it."""
        problem = validation.output_problem(self._outputs, outputs, ask.rows)
        if problem is None:
            return self._worded(ask, outputs)
        return (Kind.VIOLATION, problem.encode()) if sharers == 1 else self._attempt([ask])[0]

    def _worded(self, ask: Ask[Any], outputs: validation.Columns) -> tuple[Kind, bytes]:
        """One request's own rows as its answer."""
        door, endpoint, asked = ask.content
        kind, named = Kind.ANSWER, endpoint.decode()
        try:
            if asked.binary:
                head, rest = protocols.encode_binary(asked, outputs, endpoint=named, semver=self._semver)
                kind, body = Kind.ANSWER_BINARY, messages.JSON_LENGTH.pack(len(head)) + head + rest
            else:
                body = protocols.encode(door, asked, outputs, endpoint=named, semver=self._semver)
        except errors.ModelkeepError as refusal:
            return Kind.REFUSED, _refusal(refusal)
        if len(body) > FRAME_MAX_BYTES:
            return Kind.FAILED, f"The answer has {len(body):,} bytes; ask for fewer rows.".encode()
        return kind, body

    def warm_up(self) -> bool:
        """Answer one made-up row, so that the first caller does not pay for what happens once.

        Where the same row twice is not answered by the same answer twice, rows know each other, and requests
        will not share a call. Returns whether the row was answered; a model may rightly raise on made-up
        values.

        Raises:
            Invalid: the outputs can never fit the signature (their names, types or shapes are others).
        """
        if not self._inputs:
            return False
        columns = {field.name: _made_up(field) for field in self._inputs}
        try:
            outputs = self._runtime.predict(columns)
        except Exception as problem:  # noqa: BLE001 - the model's business
            log.info("The made-up row was not to the model's liking.", error=str(problem)[:ERROR_TEXT_MAX])
            return False
        shapes = [_without_ranges(field) for field in self._outputs]
        misfit = validation.output_problem(shapes, outputs, 1)
        if misfit is not None:
            raise errors.Invalid(f"The outputs do not fit the signature: {misfit}")
        self.together = self.together and self._row_by_row(columns, outputs)
        return True

    def _row_by_row(self, columns: validation.Columns, outputs: validation.Columns) -> bool:
        try:
            twice = self._runtime.predict(batcher.merged([columns, columns]))
        except Exception as problem:  # noqa: BLE001 - the model's business
            log.info("The model takes one row a call.", error=str(problem)[:ERROR_TEXT_MAX])
            return False
        return batcher.alike(outputs, twice)


def _made_up(field: Field) -> validation.Array:
    """One value that the field allows."""
    value: Any
    if field.categories:
        value = field.categories[0]
    elif field.type in (DataType.STRING, DataType.BYTES):
        value = "" if field.type is DataType.STRING else b""
    elif field.type is DataType.DATETIME:
        value = np.datetime64("2026-01-01T00:00:00", "us")
    elif field.type is DataType.BOOL:
        value = False
    else:
        low, high = field.minimum, field.maximum
        value = (
            (low + high) / 2
            if low is not None and high is not None
            else low
            if low is not None
            else min(high or 0, 0)
        )
        value = int(value) if field.type in (DataType.INT32, DataType.INT64) else value
    shape = (1, *(max(1, length) for length in field.dimensions))
    return np.full(shape, value, dtype=validation.DTYPES[field.type])


def _without_ranges(field: Field) -> Field:
    return Field(name=field.name, type=field.type, nullable=True, shape=field.shape)


def _late(ask: Ask[Any]) -> bool:
    return time.monotonic() > ask.deadline


def _blame(problem: BaseException) -> bytes:
    text = f"The model raised {type(problem).__name__}: {problem}"
    return text[:ERROR_TEXT_MAX].encode("utf-8", "replace")


def _refusal(refusal: errors.ModelkeepError) -> bytes:
    status = next((status for kind, status in _STATUSES if isinstance(refusal, kind)), 422)
    details = {
        key: value for key, value in refusal.details.items() if key not in ("status", "code", "detail")
    }
    return codec.encode({"status": status, "code": refusal.code, "detail": refusal.message, **details})


class _Peer:
    """One front's connection."""

    __slots__ = ("full", "out", "reader", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = frames.FrameReader()
        self.out = bytearray()
        self.full = False
        """Its socket takes no more just now."""


_Ticket = tuple[_Peer, int]


class Worker:
    """The loop around a service: fronts come and go, frames in, frames out."""

    def __init__(
        self, channel: socket.socket, service: Service, listener: socket.socket, limits: batcher.Limits
    ) -> None:
        self._channel = channel
        self._from_parent = frames.FrameReader()
        self._service = service
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._queue: Queue[_Ticket] = Queue(limits, together=service.together)
        self._tally = batcher.Tally()
        self._told = 0.0
        self._untold = False
        self._answered = 0
        self._stopping = False
        self._peers = 0
        self._last_frame = time.monotonic()
        self._unsent: set[_Peer] = set()
        channel.setblocking(False)
        listener.setblocking(False)
        self._selector.register(channel, selectors.EVENT_READ, self._on_channel)
        self._selector.register(listener, selectors.EVENT_READ, self._on_listener)

    def run(self) -> None:
        """Serve until told to stop, and then until it is quiet."""
        while not self._stopping or self._queue or (self._peers and not self._quiet()):
            for key, events in self._selector.select(self._patience()):
                if isinstance(key.data, _Peer):
                    self._on_peer(key.data, events)
                else:
                    key.data()
            self._turn()
            self._tell()

    def _quiet(self) -> bool:
        return time.monotonic() - self._last_frame >= QUIET_S

    def _patience(self) -> float | None:
        """How long to wait for something to arrive: not at all while there is something to do."""
        if self._queue:
            return 0.0
        if self._stopping:
            return QUIET_S / 3
        return TELL_S if self._untold else None

    def _turn(self) -> None:
        """Answer what waits, for a moment, or by one call that takes longer."""
        queue, service = self._queue, self._service
        now = time.monotonic()
        until = now + TURN_S
        while queue and now < until:
            taken = queue.take(now, self._read, service.key)
            for ask in taken.expired:
                self._tally.expired += 1
                self._answer(ask, Kind.EXPIRED, b"")
            if taken.batch:
                if taken.batch[0].alone:
                    self._announce(taken.batch[0])
                began = time.monotonic()
                self._tally.batch(taken, began)
                for ask, kind, body in service.settle(taken.batch):
                    self._answer(ask, kind, body)
                now = time.monotonic()
                queue.cost.learn(sum(ask.rows for ask in taken.batch), now - began)
                queue.together = service.together
        self._flush_all()

    def _read(self, ask: Ask[_Ticket]) -> bool:
        refusal = self._service.read(ask)
        if refusal is not None:
            self._answer(ask, *refusal)
        return refusal is None

    def _announce(self, ask: Ask[_Ticket]) -> None:
        """Say what is tried now, after all that was answered: should it be the end of the process, it is
        known what was, and nobody else is blamed."""
        peer, identity = ask.ticket
        peer.out += frames.pack(identity, Kind.TRYING, b"")
        self._unsent.add(peer)
        self._flush_all()

    def _answer(self, ask: Ask[_Ticket], kind: Kind, body: bytes) -> None:
        peer, identity = ask.ticket
        peer.out += frames.pack(identity, kind, body)
        self._unsent.add(peer)
        self._answered += 1
        self._untold = True

    def _flush_all(self) -> None:
        for peer in self._unsent:
            try:
                self._flush(peer)
            except OSError:
                self._lose(peer)
        self._unsent.clear()

    def _tell(self) -> None:
        """Say what was done, about once a second while something is."""
        if not self._untold:
            return
        now = time.monotonic()
        if now - self._told < TELL_S:
            return
        self._told, self._untold = now, False
        worked = self._tally.hand_over(self._service.misses())
        if worked is not None:
            self._say(worked)

    def _on_channel(self) -> None:
        data = self._channel.recv(READ_BYTES)
        if not data:
            os._exit(0)  # the supervisor is gone, and with it everybody who could ask
        for _, _, payload in self._from_parent.feed(data):
            message: messages.ToWorker = messages.unpack(payload, messages.ToWorker)  # type: ignore[arg-type]  # a union
            match message:
                case messages.Ping(number=number):
                    self._say(messages.Pong(number=number, answered=self._answered))
                case messages.Stop():
                    self._stopping = True
                    self._last_frame = time.monotonic()
                case messages.Load():
                    raise errors.Invalid("A worker loads one version in its life.")

    def _say(self, message: messages.FromWorker) -> None:
        with contextlib.suppress(BlockingIOError):  # a supervisor that does not read pongs does not need them
            self._channel.sendall(messages.pack(message))

    def _on_listener(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 1024 * 1024)
        self._selector.register(sock, selectors.EVENT_READ, _Peer(sock))
        self._peers += 1

    def _on_peer(self, peer: _Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if not events & selectors.EVENT_READ:
                return
            data = peer.sock.recv(READ_BYTES)
            if not data:
                raise ConnectionError
            received = peer.reader.feed(data)
            self._last_frame = time.monotonic()
            cancelled: set[int] = set()
            for identity, kind, payload in received:
                if kind == Kind.REQUEST:
                    deadline, sent, door, _ = PREFIX.unpack_from(payload)
                    alone = bool(door & ALONE)
                    self._queue.put(
                        Ask((peer, identity), payload, deadline=deadline, arrived=sent, alone=alone)
                    )
                elif kind == Kind.CANCEL:
                    cancelled.add(identity)
                else:
                    raise ConnectionError
            if cancelled:
                for ask in self._queue.remove(lambda ticket: ticket[0] is peer and ticket[1] in cancelled):
                    self._tally.cancelled += 1
                    self._answer(ask, Kind.CANCELLED, b"")
        except BlockingIOError:
            return
        except (
            OSError,
            struct.error,
            errors.ModelkeepError,
        ):  # the front is gone, or out of step: it comes back if it lives
            self._lose(peer)

    def _lose(self, peer: _Peer) -> None:
        """A front is gone, and with it everybody who asked through it."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(peer.sock)
            self._peers -= 1
        peer.sock.close()
        self._tally.cancelled += len(self._queue.remove(lambda ticket: ticket[0] is peer))

    def _flush(self, peer: _Peer) -> None:
        """Send what the socket takes now; the rest goes when it takes more."""
        if peer.sock.fileno() < 0:  # lost meanwhile, with answers to it under way
            return
        try:
            sent = peer.sock.send(peer.out)
            del peer.out[:sent]
        except BlockingIOError:
            pass
        if bool(peer.out) != peer.full:
            peer.full = bool(peer.out)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.full else 0)
            self._selector.modify(peer.sock, events, peer)


def _first_message(channel: socket.socket) -> messages.Load:
    reader = frames.FrameReader()
    while data := channel.recv(READ_BYTES):
        for _, _, payload in reader.feed(data):
            message: messages.ToWorker = messages.unpack(payload, messages.ToWorker)  # type: ignore[arg-type]  # a union
            if isinstance(message, messages.Load):
                return message
    os._exit(0)


def _device(load: messages.Load, files: Mapping[str, bytes]) -> tuple[Device, str]:
    """What a version computes on where there may be a card, and what is to be said of that. One that stays on
    the processor gets its limit of memory here, and sees no card."""
    word = runtimes.left_on_cpu(load.spec, files)
    if word is None:
        return Device.CUDA, runtimes.said_of_card(load.spec, files)
    os.environ[VISIBLE] = ""
    limit_memory(load.memory_bytes)
    return Device.CPU, word


def _prepared(
    load: messages.Load, files: Mapping[str, bytes], folder: Path, device: Device
) -> tuple[Service, bool]:
    """The version, loaded, warmed and asked its golden requests on the device that it will serve from; and
    whether it answered anything.

    Raises:
        ModelkeepError: it cannot be served; or not on a card, where another place would do.
    """
    spec, on_card = load.spec, device is Device.CUDA
    runtime = runtimes.load(spec, files, folder, load.threads, allow_code=load.allow_code, device=device)
    service = Service(spec, runtime, load.memory_bytes, on_card=on_card)
    warmed = service.warm_up()
    if on_card and not warmed and load.device is Device.AUTO and spec.signature and spec.signature.inputs:
        raise errors.WorkerUnavailable("It did not answer a made-up row there.")
    return service, bool(golden.ask(spec, runtime, files)) or warmed


def main(arguments: list[str]) -> None:
    """Run a worker. Arguments: the parent's pid and the channel's descriptor."""
    parent, channel_fd = int(arguments[0]), int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)
    faulthandler.enable()
    telemetry.configure()
    os.set_inheritable(channel_fd, False)
    channel = socket.socket(fileno=channel_fd)
    load = _first_message(channel)
    device = load.device
    give_up_privileges(load.memory_bytes if device is Device.CPU else 0)
    folder = Path(load.folder)
    started = time.monotonic()
    word = ""
    try:
        os.chdir(folder)
        files = verify(load.spec, folder)
        if device is not Device.CPU:
            device, word = _device(load, files)
        service, warmed = _prepared(load, files, folder, device)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(load.path)
        listener.listen(64)
    except errors.ModelkeepError as problem:
        on_card = device is Device.CUDA and not isinstance(problem, _NOT_THE_CARDS)
        failed = messages.LoadFailed(code=problem.code, error=problem.message, on_card=on_card)
        channel.sendall(messages.pack(failed))
        sys.exit(1)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a foreign model may raise anything while it is loaded
        text = f"Loading raised {type(problem).__name__}: {problem}"[:ERROR_TEXT_MAX]
        on_card = device is Device.CUDA
        channel.sendall(
            messages.pack(messages.LoadFailed(code=errors.Invalid.code, error=text, on_card=on_card))
        )
        sys.exit(1)
    gc.collect()
    gc.freeze()  # libraries and model stay: no request is to wait while they are looked through
    gc.set_threshold(*COLLECT_AFTER)
    took_s = time.monotonic() - started
    loaded = messages.Loaded(
        runtime=service.runtime_name,
        took_s=took_s,
        warmed=warmed,
        together=service.together,
        device=device,
        device_word=word,
    )
    channel.sendall(messages.pack(loaded))
    limits = batcher.Limits(rows=load.batch_rows_max, size_bytes=load.batch_max_bytes)
    try:
        Worker(channel, service, listener, limits).run()
    finally:
        Path(load.path).unlink(missing_ok=True)
