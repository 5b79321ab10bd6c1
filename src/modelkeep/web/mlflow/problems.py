"""Errors as the MLflow client knows them: the one place that has both our error tree and its codes.

The client chooses its exception by `error_code`, shows `message`, and retries by HTTP status (408, 429,
500, 502, 503, 504), so nothing that will fail again may carry one of those. Our own code and details go along
for whoever looks.
"""

from typing import Any

from modelkeep.core import codec, errors
from modelkeep.core.errors import ModelkeepError
from modelkeep.web import problems
from modelkeep.web.problems import Problem

INVALID_PARAMETER_VALUE = "INVALID_PARAMETER_VALUE"

_LEAVES: dict[type[ModelkeepError], tuple[str, int]] = {
    errors.RouteNotFound: ("ENDPOINT_NOT_FOUND", 404),
    errors.MethodNotAllowed: ("ENDPOINT_NOT_FOUND", 405),
    errors.NotProvided: ("NOT_IMPLEMENTED", 501),
    errors.RequestTooSlow: ("ABORTED", 408),
    errors.BodyTooLarge: (INVALID_PARAMETER_VALUE, 413),
    errors.Overloaded: ("RESOURCE_EXHAUSTED", 429),
    errors.TimedOut: ("DEADLINE_EXCEEDED", 504),
    errors.StorageFull: ("RESOURCE_EXHAUSTED", 507),
    errors.ExperimentExists: ("RESOURCE_ALREADY_EXISTS", 400),
    errors.InvalidState: (INVALID_PARAMETER_VALUE, 400),
    errors.ModelExists: ("RESOURCE_ALREADY_EXISTS", 400),
    errors.VersionExists: ("RESOURCE_ALREADY_EXISTS", 400),
}
_FAMILIES: tuple[tuple[type[ModelkeepError], str, int], ...] = (
    (errors.NotFound, "RESOURCE_DOES_NOT_EXIST", 404),
    (errors.Pending, "PERMISSION_DENIED", 403),
    (errors.Conflict, "RESOURCE_CONFLICT", 409),
    (errors.NotAuthenticated, "UNAUTHENTICATED", 401),
    (errors.Denied, "PERMISSION_DENIED", 403),
    (errors.Invalid, INVALID_PARAMETER_VALUE, 400),
    (errors.Corrupt, "DATA_LOSS", 410),  # what is gone; with 500 the client would ask again for four minutes
    (errors.Unavailable, "TEMPORARILY_UNAVAILABLE", 503),
)


def code_and_status(error: ModelkeepError) -> tuple[str, int]:
    """MLflow's error code and the HTTP status of an error."""
    leaf = _LEAVES.get(type(error))
    if leaf is not None:
        return leaf
    for family, code, status in _FAMILIES:
        if isinstance(error, family):
            return code, status
    return "INTERNAL_ERROR", 500


def render(error: ModelkeepError, request_id: str | None, status: int = 0) -> Problem:
    """An error as MLflow's document: its two fields, then what its client passes over.

    Args:
        status: in place of the one that the error's family has.
    """
    code, usual = code_and_status(error)
    status = status or usual
    document: dict[str, Any] = {"error_code": code, "message": error.message}
    document["modelkeep"] = {"code": error.code, "details": error.details, "request_id": request_id}
    headers = [line for line in problems.headers_of(error, status) if line[0] != b"content-type"]
    return Problem(status, [(b"content-type", b"application/json"), *headers], codec.encode(document))
