"""What an HTTP operation is: one row of the route table, and one request decoded for it.

The OpenAPI document, the authorisation matrix of the tests and the dispatcher all read the same rows, so a
route cannot exist without being described and checked. How a row runs is in `dispatch`; the rows themselves
are in `app`.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from modelkeep.core.values import ModelName, check_model_name, check_name
from modelkeep.service.act import Context
from modelkeep.service.house import House
from modelkeep.web.exchange import Answer, Body

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Mode(StrEnum):
    """How an operation runs.

    plain   on the event loop, without the store; the function gets no act
    read    in a snapshot, on the event loop where the store never waits for a network, else in the pool
    slow    a read that may be long: in the pool, unless the row can tell that a request is short
    write   one durable act in the store's writer, once for each idempotency key
    task    several acts and outside work (hashing files), in the pool; the function gets no act
    stream  bytes in or out; the function drives the connection itself
    """

    PLAIN = "plain"
    READ = "read"
    SLOW = "slow"
    WRITE = "write"
    TASK = "task"
    STREAM = "stream"


class Door(StrEnum):
    """Which language a route speaks: how requests are read and how errors are told (`languages`).

    api     Modelkeep's own: problem+json, described by the OpenAPI document
    mlflow  what the MLflow client speaks
    """

    API = "api"
    MLFLOW = "mlflow"


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """For operations that take no query parameters."""


class Call(Struct, frozen=True, kw_only=True):
    """One request, decoded: who asks, path parameters, query and body in their shapes.

    Attributes:
        prepared: what the row's `before` returned.
        incoming, answer: the connection itself, for streams.
    """

    house: House
    context: Context
    path: dict[str, str]
    query: Any
    headers: dict[bytes, bytes]
    incoming: Body
    answer: Answer
    body: Any = None
    prepared: Any = None

    @property
    def model(self) -> ModelName:
        """The model that the path names."""
        return ModelName(check_name(self.path["project"], "project"), check_model_name(self.path["model"]))


class Operation(Struct, frozen=True, kw_only=True):
    """One row of the route table.

    Attributes:
        name: the operation's id in OpenAPI, and the SDK's method.
        before: work that must not hold a transaction, such as hashing files; runs in the pool before the act.
        at_hand: the handler is tried without `before` first, and goes by the files that are at hand; it
            raises NotAtHand when that is not enough.
        short: of a slow operation, whether this request is known to be a short read after all; it runs on the
            event loop and looks at the request alone.
        query, body, answer: shapes; `bytes` for an answer that is no JSON.
        raw: the body is handed on as bytes.
        open: needs no credential.
        secret: the answer holds a secret that is shown once, so it is not kept for an idempotency key.
    """

    name: str
    method: str
    path: str
    mode: Mode
    handler: Callable[..., Any]
    summary: str
    before: Callable[[Call], Any] | None = None
    at_hand: bool = False
    short: Callable[[Call], bool] | None = None
    query: type[Any] = NoQuery
    body: Any = None
    answer: Any = None
    status: int = 200
    raw: bool = False
    door: Door = Door.API
    open: bool = False
    secret: bool = False
