"""The local door of a gateway: a unix socket for its owner, which works with the control plane stopped.

One command, one line of JSON each way. Commands: `status`, `rollback` (endpoint, actor, reason), `drain`,
`reload`. `call` is the client's side, for the command line. What the commands do is the supervisor's
business.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from modelkeep import telemetry
from modelkeep.core import codec, errors
from modelkeep.serving.options import CONTROL_LINE_MAX_BYTES, UNIX_PATH_MAX

CALL_TIMEOUT_S = 30.0
"""The longest any command takes, with room to spare."""
ADDRESS_FILE = "control.path"
"""In the data folder: where the socket really is."""
SOCKET_NAME = "control.sock"
_PREFIX = "modelkeep-run-"
_REPLY_MAX_BYTES = 16 * 1024 * 1024

log = telemetry.Log("gateway.control")

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


def _places(data: Path) -> list[Path]:
    """Where the sockets of a gateway on this folder may be, in the order in which a start tries them: in the
    folder; in a temporary one that is named after it, when the path would be too long for a socket or the
    disk takes nothing; in memory, when that disk is the same one. Known by name to whoever looks for them, as
    the address may have found no room either.

    Raises:
        OSError: there is no such data folder.
    """
    found = os.stat(data)
    folder = b"%d %d %b" % (found.st_dev, found.st_ino, os.fsencode(os.path.realpath(data)))
    named = hashlib.sha256(folder).hexdigest()[:16]
    places = [(data / "run").absolute()]
    with contextlib.suppress(OSError):  # there is none that can be written
        places.append(Path(tempfile.gettempdir()) / f"{_PREFIX}{named}")
    places += [Path(known) / f"{_PREFIX}{named}" for known in ("/tmp", "/dev/shm")]
    fit = [place for place in places if len(os.fsencode(place / "w-0000-000.sock")) <= UNIX_PATH_MAX]
    return list(dict.fromkeys(fit))


def _address(data: Path) -> Path | None:
    """Where the socket was said to be, if anywhere."""
    with contextlib.suppress(OSError):
        if said := (data / ADDRESS_FILE).read_text().strip():
            return Path(said)
    return None


class RunFolder:
    """The private folder of a running gateway's sockets. Whatever a killed gateway left is removed at the
    next start."""

    def __init__(self, data: Path) -> None:
        """
        Raises:
            OSError: no folder can be made anywhere.
        """
        self._data = data
        said = _address(data)
        places = _places(data)
        left = [said.parent] if said is not None and said.parent.name.startswith(_PREFIX) else []
        for folder in (*left, *places):
            if folder.is_dir() and folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder, ignore_errors=True)
        self.path = self._made(places)
        self.control = self.path / SOCKET_NAME
        if said != self.control:
            try:
                (data / ADDRESS_FILE).write_text(str(self.control))
            except OSError as problem:
                log.error("Where commands go cannot be written down.", error=str(problem))

    def _made(self, places: list[Path]) -> Path:
        for folder in places:
            with contextlib.suppress(OSError):
                folder.mkdir(mode=0o700)
                return folder
        return Path(tempfile.mkdtemp(prefix=_PREFIX))

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.path, ignore_errors=True)
        with contextlib.suppress(OSError):
            (self._data / ADDRESS_FILE).unlink(missing_ok=True)


class ControlServer:
    """Listens for the owner's commands."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self._path = path
        self._handler = handler
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen."""
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, str(self._path), limit=CONTROL_LINE_MAX_BYTES
            )
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                line = await reader.readline()
                writer.write(codec.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (OSError, ValueError, TimeoutError):
            pass  # the caller went away, or sent no line: nobody is left to tell
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            command = codec.decode_untrusted(line, dict, max_bytes=CONTROL_LINE_MAX_BYTES)
            arguments = command.get("arguments") or {}
            return {"ok": await self._handler(str(command.get("command")), dict(arguments))}
        except errors.ModelkeepError as problem:
            return {"error": {"code": problem.code, "detail": problem.message, "details": problem.details}}


def call(data_folder: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Give a running gateway a command and return its answer.

    Raises:
        GatewayUnavailable: no gateway runs on this folder, or it does not answer.
        ModelkeepError: what the gateway said.
    """
    paths: list[Path] = []
    with contextlib.suppress(OSError):  # there is no such folder, or not for this user
        paths = _sockets(data_folder)
    if not paths:
        raise errors.GatewayUnavailable(
            f"No gateway runs on {data_folder}; name the folder of one that does with --data, or start one: "
            f"modelkeep gateway --data {data_folder}."
        )
    try:
        with _connected(paths) as connection:
            connection.sendall(codec.encode({"command": command, "arguments": arguments}) + b"\n")
            data = bytearray()
            while not data.endswith(b"\n"):
                chunk = connection.recv(65536)
                if not chunk or len(data) > _REPLY_MAX_BYTES:
                    break
                data += chunk
        reply = codec.decode(bytes(data), dict)
    except (OSError, errors.MalformedBody) as problem:
        raise errors.GatewayUnavailable(
            f"The gateway on {data_folder} does not answer; is it still running?"
        ) from problem
    if "error" in reply:
        error = reply["error"]
        raise errors.from_code(error["code"], error["detail"], error.get("details") or {})
    answer: dict[str, Any] = reply["ok"]
    return answer


def _sockets(data: Path) -> list[Path]:
    """The sockets of this folder's gateways, the likeliest first: one that was killed leaves its own."""
    said = _address(data)
    owners = {os.getuid(), data.stat().st_uid}  # else anybody might have made a folder of that name
    found = [place / SOCKET_NAME for place in _places(data) if _owner(place) in owners]
    found = [said, *found] if said is not None else found
    return [path for path in dict.fromkeys(found) if _may_answer(path)]


def _may_answer(path: Path) -> bool:
    """Whether a socket may be there: also where it is not for this user to see, for that is said when it is
    called."""
    try:
        return path.is_socket()
    except OSError:
        return True


def _owner(folder: Path) -> int | None:
    with contextlib.suppress(OSError):
        return folder.lstat().st_uid
    return None


def _connected(paths: list[Path]) -> socket.socket:
    """A connection to the first that takes one. Raises OSError."""
    *others, last = paths
    for path in others:
        with contextlib.suppress(OSError):
            return _connection(path)
    return _connection(last)


def _connection(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CALL_TIMEOUT_S)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def lock_folder(data: Path) -> int:
    """Take the data folder for this process, also where it can only be read. Returns a descriptor that holds
    it until it is closed.

    Raises:
        FolderInUse: another gateway has it.
        InvalidSetting: it cannot be written.
    """
    import fcntl

    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = _opened(data / "gateway.lock")
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The folder {data} cannot be used: {problem.strerror}; choose another."
        ) from problem
    if stat.S_IMODE(os.fstat(fd).st_mode) != 0o600:
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        os.close(fd)
        raise errors.FolderInUse(
            f"Another gateway runs on {data}; stop it, or give this one a folder of its own with --data."
        ) from problem
    return fd


def _opened(lock: Path) -> int:
    try:
        return os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        if problem.errno != errno.EROFS:
            raise
        return os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
