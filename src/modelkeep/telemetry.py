"""What a process says about itself: log lines as JSON with their context, and its own use of the machine.

One line is one event, for a machine to search and a person to read: `at`, `level`, `part`, `message`, then
the context (such as a request id) and the facts. It does not count requests and knows no metric format;
whoever serves does.
"""

import contextlib
import contextvars
import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from msgspec import Struct

VALUE_MAX = 2_000
"""Characters of one logged value: a stack of a model's error fits, a request's body does not."""

_context: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("modelkeep_log_context")
_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """One record as one line of JSON; also those of other libraries, so that a process has one log format."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "part": record.name.removeprefix("modelkeep."),
            "message": record.getMessage()[:VALUE_MAX],
        }
        line.update(_context.get({}))
        for key, value in vars(record).items():
            if key not in _STANDARD and not key.startswith("_"):
                line[key] = (
                    value
                    if value is None or isinstance(value, bool | int | float)
                    else str(value)[:VALUE_MAX]
                )
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)[-VALUE_MAX:]
        return json.dumps(line, ensure_ascii=False)


class Log:
    """A named log whose keyword arguments become fields of the line."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"modelkeep.{name}")

    def debug(self, message: str, **facts: Any) -> None:
        self._write(logging.DEBUG, message, facts)

    def info(self, message: str, **facts: Any) -> None:
        self._write(logging.INFO, message, facts)

    def warning(self, message: str, **facts: Any) -> None:
        self._write(logging.WARNING, message, facts)

    def error(self, message: str, **facts: Any) -> None:
        self._write(logging.ERROR, message, facts)

    def failure(self, message: str, **facts: Any) -> None:
        """An error with the stack of the exception at hand."""
        self._write(logging.ERROR, message, facts, exc_info=True)

    def _write(self, level: int, message: str, facts: dict[str, Any], *, exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            extra = {(f"{key}_" if key in _STANDARD else key): value for key, value in facts.items()}
            self._logger.log(level, "%s", message, extra=extra, exc_info=exc_info)


def configure(*, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send every log line of this process to one stream (stderr unless told); calling it again replaces
    that."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())


@contextlib.contextmanager
def context(**facts: Any) -> Iterator[None]:
    """Every line written inside carries these facts."""
    token = _context.set({**_context.get({}), **facts})
    try:
        yield
    finally:
        _context.reset(token)


class ProcessUse(Struct, frozen=True, kw_only=True):
    """What one process uses of the machine. `memory_bytes` is resident."""

    pid: int
    cpu_s: float
    memory_bytes: int
    descriptors: int
    uptime_s: float


_started = time.monotonic()


def process_use() -> ProcessUse:
    """This process's own use."""
    pid = os.getpid()
    return ProcessUse(
        pid=pid,
        cpu_s=cpu_s(),
        memory_bytes=memory_bytes(pid),
        descriptors=_descriptors(),
        uptime_s=time.monotonic() - _started,
    )


def cpu_s() -> float:
    """Processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def memory_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system does not tell or the process is gone."""
    return _pages(pid, 1) * resource.getpagesize()


def mapped_bytes(pid: int) -> int:
    """The address space of a process, which its limit is held against; 0 where that cannot be told."""
    return _pages(pid, 0) * resource.getpagesize()


def _pages(pid: int, place: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[place])
    except (OSError, IndexError, ValueError):
        return 0


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0
