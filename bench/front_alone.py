"""A real front in front of a worker that computes nothing: both in processes of their own, told what to do by
this one in the place of a supervisor.

What such a front answers in a second is its own capacity; a model's time is not in it. Nothing is measured
here.
"""

import asyncio
import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from msgspec import Struct

from modelkeep.core.routing import Epoch, Route, VersionKey
from modelkeep.core.values import Digest
from modelkeep.serving import frames, messages
from modelkeep.serving.frames import FrameReader, Kind
from modelkeep.serving.handshake import FRONT
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.processes import Child, new_loop

ANSWER = b'{"outputs":[42.5]}'
READY_S = 20.0
TICK_S = 1.0


class _Echo(asyncio.Protocol):
    """Answers every request alike, as quickly as Python can."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        received = self._reader.feed(data)
        out = [frames.pack(who, Kind.ANSWER, ANSWER) for who, kind, _ in received if kind == Kind.REQUEST]
        self._transport.write(b"".join(out))


def _serve_worker(pipe: Connection, path: str) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(_Echo, path)
        pipe.send(os.getpid())
        with contextlib.suppress(EOFError):
            await loop.run_in_executor(None, pipe.poll, None)
        server.close()  # it is held until here: nobody else refers to it

    with new_loop() as runner:
        runner.run(serve())


class Alone(Struct, frozen=True):
    """The two processes, and where callers come in."""

    front: int
    worker: int
    port: int


@contextlib.contextmanager
def front_alone(folder: Path) -> Iterator[Alone]:
    """Both, connected, until the block ends."""
    path = str(folder / "w.sock")
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(
        target=_serve_worker, args=(theirs, path), daemon=True
    )
    worker.start()
    theirs.close()
    supervisor = _Supervisor(folder, path)
    thread = threading.Thread(target=supervisor.run, daemon=True)
    try:
        pid = ours.recv()
        thread.start()
        if not supervisor.ready.wait(READY_S):
            raise RuntimeError("the front has not reached its worker in time")
        yield Alone(supervisor.front_pid, pid, supervisor.port)
    finally:
        supervisor.stop()
        if thread.is_alive():
            thread.join()
        ours.close()
        worker.join()


class _Supervisor:
    """Says to a front what it needs to hear, and takes its counts, in a thread."""

    def __init__(self, folder: Path, path: str) -> None:
        self.ready = threading.Event()
        self.front_pid = self.port = 0
        self._options = GatewayOptions(data=folder, log_level="WARNING")
        self._path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    def run(self) -> None:
        """Until told to stop."""
        with new_loop() as runner:
            runner.run(self._run())

    def stop(self) -> None:
        """End the front and the thread."""
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        child = Child(messages.FromFront, self._heard, lambda code: None, name="front-0")
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            self.port = int(listener.getsockname()[1])
            await child.start(FRONT, extra_fds=(listener.fileno(),), keep_output=False, environment={})
            self.front_pid = child.pid
            for message in self._greeting():
                child.send(message)
            while not self._over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._over.wait()
                child.send(messages.Collect())
            child.kill()
            child.end()

    def _greeting(self) -> Sequence[messages.ToFront]:
        key = VersionKey("version:" + "0" * 64)
        name = messages.VersionName(
            key=key, digest=Digest("sha256:" + "0" * 64), label="churn:1.0.0", semver="1.0.0"
        )
        route = Route(endpoint="churn", epoch=Epoch(1, 1), stable=key)
        swap = messages.Swap(serial=1, number=1, changed=(route,), removed=(), versions=(name,))
        hello = messages.Hello(options=self._options, index=0, swap=swap, known=True)
        return hello, messages.WorkerUp(version=name, path=self._path)

    def _heard(self, message: Any) -> None:
        if isinstance(message, messages.Connected):
            self.ready.set()
