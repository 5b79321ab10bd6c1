"""Errors as HTTP sees them: the one place that knows both our error tree and status codes (RFC 9457).

Only families are mapped, with the few leaves that need another status; a new error class needs no change
here.
"""

from http import HTTPStatus
from typing import NamedTuple

from modelkeep.core import codec, errors
from modelkeep.core.errors import ModelkeepError

PROBLEM_TYPE = "application/problem+json"


class Problem(NamedTuple):
    """An error as it goes over the wire."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


_LEAVES: dict[type[ModelkeepError], int] = {
    errors.MethodNotAllowed: 405,
    errors.RequestTooSlow: 408,
    errors.BodyTooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.InvalidInput: 422,
    errors.SemverTooLow: 422,
    errors.Overloaded: 429,
    errors.TimedOut: 504,
    errors.NotProvided: 501,
    errors.StorageFull: 507,
}
_FAMILIES: tuple[tuple[type[ModelkeepError], int], ...] = (
    (errors.NotFound, 404),
    (errors.Pending, 409),
    (errors.Conflict, 409),
    (errors.NotAuthenticated, 401),
    (errors.Denied, 403),
    (errors.Invalid, 400),
    (errors.Corrupt, 500),
    (errors.Unavailable, 503),
)

WRONG_BYTES = 422
"""The status of a digest that does not match in an upload: there the sender is at fault, not our disk."""
HEADERS_TOO_LARGE = 431
"""The status of a request whose head never ends; it is answered below the route table."""
CALLER_GONE = 499
"""What is counted for a caller who did not wait; nobody gets to see it."""

RETRY_AFTER_S = 1
"""What a caller is told to wait when the same request may succeed later."""


def status_of(error: ModelkeepError) -> int:
    """The HTTP status of an error."""
    leaf = _LEAVES.get(type(error))
    if leaf is not None:
        return leaf
    return next((status for family, status in _FAMILIES if isinstance(error, family)), 500)


def phrase_of(status: int) -> bytes:
    """The words that stand beside a status in the first line of an answer."""
    return HTTPStatus(status).phrase.encode()


def body_of(error: ModelkeepError, request_id: str | None, status: int) -> bytes:
    """The problem document: what happened, what to do next, and the id to find it in the logs by."""
    return codec.encode(
        {
            "type": f"urn:modelkeep:error:{error.code.lower()}",
            "title": error.code.replace("_", " ").capitalize(),
            "status": status,
            "detail": error.message,
            "code": error.code,
            "details": error.details,
            "request_id": request_id,
        }
    )


def headers_of(error: ModelkeepError, status: int) -> list[tuple[bytes, bytes]]:
    """The headers that go with the problem."""
    headers = [(b"content-type", PROBLEM_TYPE.encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="modelkeep"'))
    if status == 405:
        headers.append((b"allow", ", ".join(error.details.get("allow", ())).encode()))
    if status in (429, 503):
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    return headers


def render(error: ModelkeepError, request_id: str | None, status: int = 0) -> Problem:
    """An error as problem+json.

    Args:
        status: in place of the one that the error's family has.
    """
    status = status or status_of(error)
    return Problem(status, headers_of(error, status), body_of(error, request_id, status))


UNEXPECTED = errors.ModelkeepError(
    "Modelkeep met an error that it did not expect; the log has it under this request id. Please report it."
)
"""What a caller sees of a fault of ours: never a trace, never a secret."""
