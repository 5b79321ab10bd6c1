"""Children: how the supervisor starts fronts and workers, speaks with them, and makes sure that they end.

A child has a socket pair to its parent and three guards against outliving it: the kernel's parent-death
signal, the end of file on the channel, and its parent's own stop. What children are for is not known here.
"""

import asyncio
import contextlib
import ctypes
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from modelkeep import telemetry
from modelkeep.core.errors import ModelkeepError
from modelkeep.serving import frames, handshake, messages
from modelkeep.serving.options import GatewayOptions
from modelkeep.serving.pauses import Pauses

OUTPUT_KEPT_BYTES = 8 * 1024
"""Of what a child prints, the last bytes are kept for the error that may follow."""
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

log = telemetry.Log("gateway.processes")


def new_loop() -> asyncio.Runner:
    """The fastest event loop there is: uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent's thread ends; end at once when it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def give_up_privileges(memory_bytes: int) -> None:
    """What a process that runs foreign models can do without: new privileges, core files, unbounded
    memory."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit_memory(memory_bytes)


def limit_memory(memory_bytes: int) -> None:
    """Have this process map no more than that (0: as much as it likes)."""
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


class BackOff:
    """How long to wait before the next start: doubling with jitter, forgotten after a healthy time; and when
    a child crashes too often to be tried for traffic."""

    def __init__(self, options: GatewayOptions) -> None:
        self._options = options
        self._pauses = Pauses(options.backoff_first_s, options.backoff_max_s)
        self._crashes: deque[float] = deque(maxlen=max(1, options.crashes_max))
        self.total = 0

    def crashed(self, now: float, up_s: float) -> float:
        """Take note of a crash after `up_s` seconds of life. Returns the seconds to wait before the next
        start."""
        if up_s >= self._options.healthy_after_s:
            self._pauses.begin_anew()
        self._crashes.append(now)
        self.total += 1
        return self._pauses.next() * random.uniform(0.8, 1.2)

    def forget(self) -> None:
        """Begin anew: what happened before had a cause that is said to be mended. `total` stays."""
        self._pauses.begin_anew()
        self._crashes.clear()

    @property
    def looping(self) -> bool:
        """Whether the last crashes came too close together."""
        crashes = self._crashes
        full = len(crashes) == crashes.maxlen
        return full and crashes[-1] - crashes[0] <= self._options.crash_window_s


class Child(asyncio.Protocol):
    """A running child process and the channel to it.

    `on_message` gets each message; `on_end` is called once, when the process is gone, with its exit code.
    """

    def __init__(
        self, union: Any, on_message: Callable[[Any], None], on_end: Callable[[int], None], *, name: str
    ) -> None:
        self._union = union
        self._on_message = on_message
        self._on_end = on_end
        self._reader = frames.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._output = bytearray()
        self._pipe: asyncio.ReadTransport | None = None
        self.name = name
        self.started = time.monotonic()
        self.heard = self.started

    async def start(
        self,
        part: str,
        *,
        extra_fds: Sequence[int] = (),
        keep_output: bool,
        environment: dict[str, str],
        python: str = sys.executable,
    ) -> None:
        """Start a part of the gateway with the parent's pid, the channel and more descriptors as arguments.

        Args:
            keep_output: keep the end of what it prints instead of passing it on.
            environment: all of the child's variables; nothing is inherited.
            python: the interpreter; one that finds this package.

        Raises:
            OSError: the system cannot start another process.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        read_end, write_end = os.pipe()
        output = write_end if keep_output else None
        try:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a spawn takes a millisecond
                [python, *handshake.words(part), str(os.getpid()), str(theirs.fileno()),
                 *(str(descriptor) for descriptor in extra_fds)],
                pass_fds=(theirs.fileno(), *extra_fds),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )  # fmt: skip
        except OSError:
            ours.close()
            os.close(read_end)
            raise
        finally:
            theirs.close()
            os.close(write_end)
        self.started = self.heard = time.monotonic()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self, sock=ours)
        # asyncio's transport closes the file. uvloop's closes the descriptor and then the file, which must
        # not own it: the second time the number may be anybody's.
        pipe = os.fdopen(read_end, "rb", buffering=0, closefd=isinstance(loop, asyncio.BaseEventLoop))
        self._pipe, _ = await loop.connect_read_pipe(lambda: _Output(self._output), pipe)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    @property
    def output(self) -> str:
        """The last of what the child printed."""
        return bytes(self._output).decode("utf-8", "replace").strip()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        try:
            received = [messages.unpack(payload, self._union) for _, _, payload in self._reader.feed(data)]
        except (ModelkeepError, ValueError) as problem:  # what a child says is not trusted either
            log.error("A child speaks nonsense and is ended.", child=self.name, error=str(problem))
            self.kill()
            return
        for message in received:
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.end()

    def send(self, message: messages.Message) -> None:
        """Say something; a child that is going does not hear it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(messages.pack(message))

    def exited(self) -> bool:
        """Whether the process is gone although its channel may still be open in a grandchild."""
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        """End the process now. Its end is reported like any other."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def end(self) -> None:
        """Make sure that nothing of the child is left, and report its end once."""
        if self._ended:
            return
        self._ended = True
        self.kill()
        code = self._process.wait() if self._process is not None else -1
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)  # what the child itself has started
        self._read_rest()
        for transport in (self._transport, self._pipe):
            if transport is not None:
                transport.close()
        self._on_end(code)

    def _read_rest(self) -> None:
        """Take what the child printed last: its end may be seen before its output."""
        if self._pipe is None or self._pipe.is_closing():
            return
        descriptor = self._pipe.get_extra_info("pipe").fileno()
        with contextlib.suppress(OSError):  # empty, but open in a grandchild
            while data := os.read(descriptor, OUTPUT_KEPT_BYTES):
                keep(self._output, data)


def keep(kept: bytearray, data: bytes) -> None:
    """Add to an output of which the end alone is kept."""
    kept += data
    del kept[:-OUTPUT_KEPT_BYTES]


class _Output(asyncio.Protocol):
    """Keeps the end of what a child prints, so that printing can neither block it nor fill a disk."""

    def __init__(self, kept: bytearray) -> None:
        self._kept = kept

    def data_received(self, data: bytes) -> None:
        keep(self._kept, data)
