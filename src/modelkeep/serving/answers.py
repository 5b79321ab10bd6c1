"""What a front writes back: JSON, problems (RFC 9457), and the request ids they carry. It decides no
answer."""

import os
import re
from typing import Any, Protocol

from modelkeep.core import codec
from modelkeep.serving.http import STATUS_LINES, Request

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")


class Answered(Protocol):
    """Whoever takes an answer: a connection."""

    def answer(self, head: bytes, body: bytes) -> None: ...


class Answers:
    """Writes answers and counts their statuses."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.date = b""
        self._prefix = os.urandom(6).hex().encode()
        self._number = 0

    def request_id(self, request: Request) -> bytes:
        """The caller's own id where it is sane, else a new one."""
        given = request.headers.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        self._number += 1
        return b"%b%08x" % (self._prefix, self._number)

    def count(self, status: int) -> None:
        """Take note of an answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def json(self, connection: Answered, status: int, body: Any, request_id: bytes) -> None:
        """Answer with a document."""
        self.count(status)
        data = codec.encode(body)
        head = b"%bContent-Type: application/json\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n"
        connection.answer(head % (STATUS_LINES[status], len(data), request_id), data)

    def problem(
        self,
        connection: Answered,
        status: int,
        code: str,
        detail: str,
        request_id: bytes,
        extra: bytes = b"",
        details: dict[str, Any] | None = None,
    ) -> None:
        """Answer with an error."""
        self.count(status)
        connection.answer(*_problem(status, code, detail, request_id, extra, details or {}))

    def refusal(self, status: int, code: str, detail: str) -> bytes:
        """A whole answer to what was no request; the connection ends after it."""
        self.count(status)
        self._number += 1
        head, body = _problem(status, code, detail, b"%b%08x" % (self._prefix, self._number), b"", {})
        return b"%bDate: %b\r\nConnection: close\r\n\r\n%b" % (head, self.date, body)


def _problem(
    status: int, code: str, detail: str, request_id: bytes, extra: bytes, details: dict[str, Any]
) -> tuple[bytes, bytes]:
    """Head and body of an error. Whatever may come right by itself says when to try again."""
    title = STATUS_LINES[status][13:-2].decode()
    problem: dict[str, Any] = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        "error": detail,  # where clients of the Open Inference Protocol look
    }
    problem["request_id"] = request_id.decode("latin-1")
    if details:
        problem["details"] = details
    body = codec.encode(problem)
    retry = b"Retry-After: 1\r\n" if status in (429, 503) else b""
    head = b"%bContent-Type: application/problem+json\r\nContent-Length: %d\r\nX-Request-Id: %b\r\n%b%b"
    return head % (STATUS_LINES[status], len(body), request_id, retry, extra), body
