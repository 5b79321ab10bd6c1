"""Errors as HTTP sees them: the one place that knows both our error tree and status codes (RFC 9457).

Only families are mapped, with the few leaves that need another status; a new error class needs no change
here.
"""

from modelkeep.core import codec, errors
from modelkeep.core.errors import ModelkeepError

PROBLEM_TYPE = "application/problem+json"

_LEAVES: dict[type[ModelkeepError], int] = {
    errors.BodyTooLarge: 413,
    errors.InvalidInput: 422,
    errors.SemverTooLow: 422,
    errors.Overloaded: 429,
    errors.TimedOut: 504,
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

RETRY_AFTER_S = 1
"""What a caller is told to wait when the same request may succeed later."""


def status_of(error: ModelkeepError) -> int:
    """The HTTP status of an error."""
    leaf = _LEAVES.get(type(error))
    if leaf is not None:
        return leaf
    return next((status for family, status in _FAMILIES if isinstance(error, family)), 500)


def body_of(error: ModelkeepError, request_id: str | None) -> bytes:
    """The problem document: what happened, what to do next, and the id to find it in the logs by."""
    status = status_of(error)
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


def headers_of(error: ModelkeepError) -> list[tuple[bytes, bytes]]:
    """The headers that go with the problem."""
    headers = [(b"content-type", PROBLEM_TYPE.encode())]
    status = status_of(error)
    if status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="modelkeep"'))
    if status in (429, 503):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return headers


UNEXPECTED = errors.ModelkeepError(
    "Modelkeep met an error that it did not expect; the log has it under this request id. Please report it."
)
"""What a caller sees of a fault of ours: never a trace, never a secret."""
