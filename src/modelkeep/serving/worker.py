"""A worker: the process of one model version. It loads verified files, then answers frames in the order they
come.

One thread, on purpose: a model is asked one thing at a time, and a request that hangs or kills it hurts this
version's process only. Queues are bounded by the fronts, deadlines travel with the requests, and what has
expired in the queue is not computed. It trusts nothing it is sent and knows no route, no weight and no other
version.
"""

import contextlib
import faulthandler
import gc
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.core.routing import VersionSpec
from modelkeep.core.signature import DataType, Field
from modelkeep.serving import frames, messages, protocols, runtimes, validation
from modelkeep.serving.cache import verify
from modelkeep.serving.frames import Kind
from modelkeep.serving.messages import Door
from modelkeep.serving.options import ERROR_TEXT_MAX, FRAME_MAX_BYTES
from modelkeep.serving.processes import die_with_parent, give_up_privileges
from modelkeep.serving.upstream import PREFIX

READ_BYTES = 256 * 1024
"""Taken from one front at a time, so that none starves the others."""
FLUSH_S = 0.0005
"""Answers wait for each other no longer than this: many small ones share a write, a slow one waits for
none."""
QUIET_S = 0.3
"""After the word to stop, go when nothing has come for this long: what was sent before the swap has then
arrived."""
_STATUSES = ((errors.MalformedBody, 400), (errors.LimitExceeded, 413))

log = telemetry.Log("gateway.worker")


class Service:
    """A loaded version as a function from request bytes to answer bytes."""

    def __init__(self, spec: VersionSpec, runtime: runtimes.Runtime) -> None:
        self._runtime = runtime
        self._semver = spec.semver
        self._decoder = protocols.Decoder(spec.signature)
        self._outputs = spec.signature.outputs if spec.signature is not None else ()
        self._inputs = spec.signature.inputs if spec.signature is not None else ()

    def answer(self, payload: bytes) -> tuple[Kind, bytes]:
        """Answer one request frame. Never raises: whatever the model does is the version's fault, not the
        worker's."""
        deadline, number, length = PREFIX.unpack_from(payload)
        start = PREFIX.size + length
        if time.monotonic() > deadline:
            return Kind.EXPIRED, b""
        door = Door(number)
        try:
            asked = self._decoder.decode(door, payload[start:])
            outputs = self._runtime.predict(asked.columns)
            problem = validation.output_problem(self._outputs, outputs, asked.rows)
            if problem is not None:
                return Kind.VIOLATION, problem.encode()
            endpoint = payload[PREFIX.size : start].decode()
            body = protocols.encode(door, asked, outputs, endpoint=endpoint, semver=self._semver)
            if len(body) > FRAME_MAX_BYTES:
                return Kind.FAILED, f"The answer has {len(body):,} bytes; ask for fewer rows.".encode()
            return Kind.ANSWER, body
        except errors.ModelkeepError as refusal:
            return Kind.REFUSED, _refusal(refusal)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - a model may even call sys.exit
            text = f"The model raised {type(problem).__name__}: {problem}"
            return Kind.FAILED, text[:ERROR_TEXT_MAX].encode("utf-8", "replace")

    def warm_up(self) -> bool:
        """Answer one made-up row, so that the first caller does not pay for what happens once.

        Returns whether that was possible; a model may rightly raise on made-up values.

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
        return True


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


def _refusal(refusal: errors.ModelkeepError) -> bytes:
    status = next((status for kind, status in _STATUSES if isinstance(refusal, kind)), 422)
    details = {
        key: value for key, value in refusal.details.items() if key not in ("status", "code", "detail")
    }
    return codec.encode({"status": status, "code": refusal.code, "detail": refusal.message, **details})


class _Peer:
    """One front's connection."""

    __slots__ = ("out", "reader", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = frames.FrameReader()
        self.out = bytearray()


class Worker:
    """The loop around a service: fronts come and go, frames in, frames out."""

    def __init__(self, channel: socket.socket, service: Service, listener: socket.socket) -> None:
        self._channel = channel
        self._from_parent = frames.FrameReader()
        self._service = service
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._answered = 0
        self._stopping = False
        self._last_frame = time.monotonic()
        channel.setblocking(False)
        listener.setblocking(False)
        self._selector.register(channel, selectors.EVENT_READ, self._on_channel)
        self._selector.register(listener, selectors.EVENT_READ, self._on_listener)

    def run(self) -> None:
        """Serve until told to stop, and then until it is quiet."""
        while not self._stopping or time.monotonic() - self._last_frame < QUIET_S:
            for key, events in self._selector.select(QUIET_S / 3 if self._stopping else None):
                if isinstance(key.data, _Peer):
                    self._on_peer(key.data, events)
                else:
                    key.data()

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

    def _on_peer(self, peer: _Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                self._flush(peer)
            if not events & selectors.EVENT_READ:
                return
            data = peer.sock.recv(READ_BYTES)
            if not data:
                raise ConnectionError
            requests = peer.reader.feed(data)
            flushed = time.monotonic()
            for identity, kind, payload in requests:
                if kind != Kind.REQUEST:
                    raise ConnectionError
                answer, body = self._service.answer(payload)
                peer.out += frames.pack(identity, answer, body)
                now = time.monotonic()
                if now - flushed > FLUSH_S:
                    self._flush(peer)
                    flushed = now
            self._answered += len(requests)
            self._last_frame = time.monotonic()
            if peer.out:
                self._flush(peer)
        except BlockingIOError:
            return
        except (
            OSError,
            errors.ModelkeepError,
        ):  # the front is gone, or out of step: it comes back if it lives
            self._selector.unregister(peer.sock)
            peer.sock.close()

    def _flush(self, peer: _Peer) -> None:
        """Send what the socket takes now; the rest goes when it takes more."""
        try:
            sent = peer.sock.send(peer.out)
            del peer.out[:sent]
        except BlockingIOError:
            pass
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.out else 0)
        if self._selector.get_key(peer.sock).events != wanted:
            self._selector.modify(peer.sock, wanted, peer)


def _first_message(channel: socket.socket) -> messages.Load:
    reader = frames.FrameReader()
    while data := channel.recv(READ_BYTES):
        for _, _, payload in reader.feed(data):
            message: messages.ToWorker = messages.unpack(payload, messages.ToWorker)  # type: ignore[arg-type]  # a union
            if isinstance(message, messages.Load):
                return message
    os._exit(0)


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
    give_up_privileges(load.memory_bytes)
    folder = Path(load.folder)
    started = time.monotonic()
    try:
        os.chdir(folder)
        runtime = runtimes.load(load.spec, verify(load.spec, folder), folder, load.threads)
        service = Service(load.spec, runtime)
        warmed = service.warm_up()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(load.path)
        listener.listen(64)
    except errors.ModelkeepError as problem:
        channel.sendall(messages.pack(messages.LoadFailed(code=problem.code, error=problem.message)))
        sys.exit(1)
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a foreign model may raise anything while it is loaded
        text = f"Loading raised {type(problem).__name__}: {problem}"[:ERROR_TEXT_MAX]
        channel.sendall(messages.pack(messages.LoadFailed(code=errors.Invalid.code, error=text)))
        sys.exit(1)
    gc.collect()
    gc.freeze()  # libraries and model stay: no request is to wait while they are looked through
    took_s = time.monotonic() - started
    channel.sendall(messages.pack(messages.Loaded(runtime=runtime.name, took_s=took_s, warmed=warmed)))
    try:
        Worker(channel, service, listener).run()
    finally:
        Path(load.path).unlink(missing_ok=True)
