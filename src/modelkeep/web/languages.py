"""The languages that routes speak: how each reads a query and a body, and how it tells an error.

A route says which is its own (`Operation.door`); nothing else in the face's machinery knows that there are
several.
"""

from typing import Any

from modelkeep.web import problems, requests
from modelkeep.web.dispatch import Headers, Language
from modelkeep.web.mlflow import problems as mlflow_problems
from modelkeep.web.mlflow import wire
from modelkeep.web.operations import Door, NoQuery, Operation


def _own_query(raw: bytes, operation: Operation, headers: Headers) -> Any:
    return requests.query(raw, operation.query)


def _own_body(data: bytes, operation: Operation, headers: Headers) -> Any:
    return requests.body(data, operation)


def _mlflow_query(raw: bytes, operation: Operation, headers: Headers) -> Any:
    if operation.query is NoQuery:
        return None  # the client puts nothing there, and what proxies add is nobody's business
    return wire.from_query(raw, operation.query, newer=wire.is_newer(headers))


def _mlflow_body(data: bytes, operation: Operation, headers: Headers) -> Any:
    return wire.from_body(data, operation.body, newer=wire.is_newer(headers))


LANGUAGES: dict[Door, Language] = {
    Door.API: Language(_own_query, _own_body, problems.render),
    Door.MLFLOW: Language(_mlflow_query, _mlflow_body, mlflow_problems.render),
}

_MLFLOW_PATHS = (b"/api/2.0", b"/api/3.0", b"/ajax-api/")


def language_of(raw_path: bytes) -> Language:
    """The language in which to say that there is nothing at a path."""
    return LANGUAGES[Door.MLFLOW if raw_path.startswith(_MLFLOW_PATHS) else Door.API]
