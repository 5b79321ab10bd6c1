"""The processes that a machine runs: the server in this process, the gateway, and the small parent of both.

The parent starts the two, starts again what dies, and ends what it started. A child knows by a socket to its
parent, and from the kernel, when the parent is gone, and ends by itself; so a killed parent leaves nothing
behind. What server and gateway do is not known here.
"""

import contextlib
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from modelkeep.core import codec, errors
from modelkeep.settings import Settings

STOP_S = 4.5
"""After this the server's process ends whatever it does; what was acknowledged is safe on disk."""
GATEWAY_STOP_S = 12.0
"""A gateway lets requests under way finish; after this it is killed."""
READY_MAX_S = 60.0
"""A child that is not ready by then has failed."""
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0
HEALTHY_S = 30.0
"""A child that lived so long has its back-off forgotten."""
LOOK_S = 0.1
"""How often the parent looks after its children."""
_PR_SET_PDEATHSIG = 1


class Ready(Struct, frozen=True, kw_only=True):
    """What a child tells its parent, once, when it can be used."""

    url: str
    admin_token: str | None = None


# ------------------------------------------------------------------------------------------------------------
# - server


def listen(host: str, port: int) -> socket.socket:
    """Take the address before anything else is opened, so that a mistake is told at once.

    Raises:
        PortInUse: somebody listens there.
        InvalidSetting: there is no such address on this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as problem:
        listener.close()
        if problem.errno == errno.EADDRINUSE:
            raise errors.PortInUse(
                f"Port {port} on {host} is taken; stop what listens there, or choose another with --port.",
                port=port,
            ) from problem
        raise errors.InvalidSetting(f"Cannot listen on {host} port {port}: {problem.strerror}.") from problem
    return listener


def address_of(listener: socket.socket) -> str:
    """The address under which a listener is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


# ----------------------------------------------------------------------------------------------------- parent
# and child


def bind_to_parent(channel: int) -> Callable[[Ready], None]:
    """In a child: end when the parent does. Returns how to tell the parent that one is ready."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    connection = socket.socket(fileno=channel)

    def watch() -> None:
        with contextlib.suppress(OSError):
            while connection.recv(64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="modelkeep-parent", daemon=True).start()

    def tell(ready: Ready) -> None:
        connection.sendall(codec.encode(ready) + b"\n")

    return tell


class Child:
    """A process that the parent keeps running."""

    def __init__(self, name: str, arguments: Callable[[str | None], list[str]], *, stop_s: float) -> None:
        """
        Args:
            arguments: the words after `modelkeep`, given the address of the child's former life, which it
            keeps.
        """
        self.name = name
        self.ready: Ready | None = None
        self._arguments = arguments
        self._stop_s = stop_s
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._received = b""
        self._started = 0.0
        self._next = 0.0
        self._wait = BACKOFF_FIRST_S

    def start(self) -> None:
        """Start it."""
        ours, theirs = socket.socketpair()
        words = self._arguments(self.ready.url if self.ready is not None else None)
        try:
            self._process = subprocess.Popen(
                # -P: a file of the folder where somebody typed `up` must not stand in for a module
                [sys.executable, "-P", "-m", "modelkeep.cli.main", *words, "--parent", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        ours.setblocking(False)
        self._close()
        self._channel, self._received, self._started = ours, b"", time.monotonic()

    def heard(self) -> Ready | None:
        """What the child has told, once it has."""
        with contextlib.suppress(BlockingIOError, OSError):
            if self._channel is not None:
                self._received += self._channel.recv(65_536)
        line, end, _ = self._received.partition(b"\n")
        if end and self._received:
            self.ready, self._received = codec.decode(line, Ready), b""
            return self.ready
        return None

    @property
    def exit_code(self) -> int | None:
        """How it ended, or None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def late(self) -> bool:
        """Whether it should have been ready by now."""
        return time.monotonic() - self._started > READY_MAX_S

    def look(self, now: float) -> int | None:
        """Start it again when it has ended and its time has come. Returns how it ended, when that is news."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._wait = BACKOFF_FIRST_S if now - self._started > HEALTHY_S else self._wait
            self._next = now + self._wait * random.uniform(0.8, 1.2)
            self._wait = min(self._wait * 2, BACKOFF_MAX_S)
            self._process = None
            return code
        if self._process is None and now >= self._next:
            self.start()
        return None

    def stop(self) -> None:
        """End it: asked first, then killed."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(self._stop_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def keep_running(
    server: Child, gateway: Child, on_ready: Callable[[Ready, Ready], None], say: Callable[[str], None]
) -> int:
    """Run both until a signal comes. Returns the exit code.

    Args:
        on_ready: called once, with what server and gateway told.
        say: told what a person should know meanwhile.
    """
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stopped.set())
    try:
        told: list[Ready] = []
        for child in (server, gateway):
            child.start()
            ready = _first_ready(child, stopped)
            if ready is None:
                return child.exit_code or (0 if stopped.is_set() else 1)
            told.append(ready)
        on_ready(told[0], told[1])
        while not stopped.wait(LOOK_S):
            for child in (server, gateway):
                child.heard()
                code = child.look(time.monotonic())
                if code is not None:
                    say(f"The {child.name} ended ({_how(code)}); it is started again.")
        return 0
    finally:
        gateway.stop()  # first: it reports what it saw last
        server.stop()


def _first_ready(child: Child, stopped: threading.Event) -> Ready | None:
    while not stopped.wait(LOOK_S / 4):
        ready = child.heard()
        if ready is not None:
            return ready
        if child.exit_code is not None or child.late:
            return None
    return None


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def gateway_folder(settings: Settings, said: str | None) -> Path:
    """The gateway's own folder; a data folder of server and gateway together is understood as well."""
    if said is None:
        return settings.gateway_folder
    folder = Path(said)
    whole = (folder / "gateway" / "control.path").exists() or (folder / "server.lock").exists()
    return folder / "gateway" if whole else folder
