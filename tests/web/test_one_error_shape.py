"""Every error of every route has one shape, an id to find it by, and nothing of our insides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.service.house import House
from modelkeep.web import problems
from modelkeep.web.app import OPERATIONS, create_app
from modelkeep.web.operations import NoQuery, Operation
from tests.web.asks import ASKS, V1, Aim, Ask
from tests.web.inprocess import InProcess, Reply, in_process
from tests.web.world import World, fill, opened, rehearsing

pytestmark = pytest.mark.req("U4")

BY_NAME = {row.name: row for row in OPERATIONS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An installation that nothing in this file changes."""
    with opened(tmp_path_factory.mktemp("data"), "token") as house:
        yield fill(house)


@pytest.fixture(scope="module")
def root(world: World) -> Iterator[InProcess]:
    """Its application, asked by an admin of everything."""
    with in_process(create_app(rehearsing(world.house)), world.tokens["root"]) as found:
        yield found


def ask_of(world: World, row: Operation) -> Ask:
    """A request that an admin may send, and that would be carried out."""
    return ASKS[row.name](Aim(world, "own", "root"))


def check(reply: Reply, status: int, code: str) -> dict[str, Any]:
    """The problem in an answer, after a look at everything that each has."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = reply.json()
    assert list(problem) == ["type", "title", "status", "detail", "code", "details", "request_id"]
    assert problem["status"] == status
    assert problem["code"] == code
    assert problem["type"] == f"urn:modelkeep:error:{code.lower()}"
    assert problem["detail"][0].isupper() or problem["detail"][0] in "'\"("
    assert problem["request_id"] == reply.headers["x-request-id"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "Traceback" not in problem["detail"]
    return problem


@pytest.mark.parametrize("row", [row.name for row in OPERATIONS])
def test_the_request_id_comes_back(world: World, root: InProcess, row: str) -> None:
    """A caller's own id is on the answer of every route, and one that cannot be an id is replaced."""
    ask = ask_of(world, BY_NAME[row])
    assert ask.send(root, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    fresh = ask.send(root, headers={"x-request-id": "two words\x1b[0m"}).headers["x-request-id"]
    assert fresh.startswith("req-")


@pytest.mark.parametrize("row", [row.name for row in OPERATIONS])
def test_an_unknown_query_parameter_is_refused(world: World, root: InProcess, row: str) -> None:
    """A misspelt parameter is told, with those that there are, and not ignored."""
    ask = ask_of(world, BY_NAME[row])
    reply = root(ask.method, ask.path, ask.body, query={**(ask.query or {}), "limti": 5}, raw=ask.raw)
    problem = check(reply, 400, "INVALID")
    assert "limti" in problem["detail"]


@pytest.mark.parametrize("row", [row.name for row in OPERATIONS if row.query is not NoQuery])
def test_a_parameter_twice_is_refused(world: World, root: InProcess, row: str) -> None:
    """Of two values it is not said which one counts."""
    ask = ask_of(world, BY_NAME[row])
    name = BY_NAME[row].query.__struct_fields__[0]
    check(root(ask.method, ask.path, ask.body, query=f"{name}=1&{name}=2", raw=ask.raw), 400, "INVALID")


REQUIRING = [
    row.name for row in OPERATIONS if len(row.query.__struct_defaults__) < len(row.query.__struct_fields__)
]


@pytest.mark.parametrize("row", REQUIRING)
def test_a_missing_parameter_is_named(world: World, root: InProcess, row: str) -> None:
    """What is missing stands in the sentence."""
    ask = ask_of(world, BY_NAME[row])
    problem = check(root(ask.method, ask.path, ask.body, raw=ask.raw), 400, "INVALID")
    assert "missing required field" in problem["detail"]


WITH_BODY = [row.name for row in OPERATIONS if row.body is not None and not row.raw]


@pytest.mark.parametrize("row", WITH_BODY)
@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "MALFORMED_BODY"),
        (b"", "MALFORMED_BODY"),
        (b"[1, 2]", "MALFORMED_BODY"),
        (b'"text"', "MALFORMED_BODY"),
        (b'{"no such field": 1}', "MALFORMED_BODY"),
        (b'{"a": 1, "a": 2}', "MALFORMED_BODY"),
        (b'{"a": 1, "\\u0061": 2}', "MALFORMED_BODY"),
        (b'{"a": NaN}', "MALFORMED_BODY"),
        (b"\xff\xfe", "MALFORMED_BODY"),
        (b"[" * 100_000, "LIMIT_EXCEEDED"),
        (b'{"a":' * 5_000, "LIMIT_EXCEEDED"),
    ],
    ids=[
        "cut",
        "empty",
        "array",
        "text",
        "unknown",
        "twice",
        "escaped",
        "nan",
        "not UTF-8",
        "deep",
        "deep keys",
    ],
)
def test_a_body_that_is_none(world: World, root: InProcess, row: str, raw: bytes, code: str) -> None:
    """What is no JSON, has not the shape, has a key twice or is nested too deep is refused on every route."""
    ask = ask_of(world, BY_NAME[row])
    reply = root(ask.method, ask.path, raw=raw, query=ask.query, headers={"content-type": "application/json"})
    check(reply, 400, code)


@pytest.mark.parametrize("row", WITH_BODY)
def test_a_body_of_another_kind(world: World, root: InProcess, row: str) -> None:
    """A form that a page could send without asking, and a compressed body, are refused on every route."""
    ask = ask_of(world, BY_NAME[row])
    for headers in (
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ):
        reply = root(ask.method, ask.path, raw=b"{}", query=ask.query, headers=headers)
        check(reply, 415, "UNSUPPORTED_MEDIA")


@pytest.mark.parametrize("row", [row.name for row in OPERATIONS])
def test_another_method(world: World, root: InProcess, row: str) -> None:
    """A method that an address does not take is refused, with those that it takes."""
    ask = ask_of(world, BY_NAME[row])
    reply = root("TRACE", ask.path, query=ask.query)
    problem = check(reply, 405, "METHOD_NOT_ALLOWED")
    assert BY_NAME[row].method in problem["details"]["allow"]
    assert reply.headers["allow"] == ", ".join(problem["details"]["allow"])


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nothing", 404, "ROUTE_NOT_FOUND"),
        ("/api/v1", 404, "ROUTE_NOT_FOUND"),
        ("/api/v1/models/", 404, "ROUTE_NOT_FOUND"),
        ("/api/v1/models//churn", 404, "ROUTE_NOT_FOUND"),
        ("/api/v2/models", 404, "ROUTE_NOT_FOUND"),
        ("/API/v1/models", 404, "ROUTE_NOT_FOUND"),
        ("/" * 1_000, 404, "ROUTE_NOT_FOUND"),
        ("/api/v1/models/own/churn/", 404, "ROUTE_NOT_FOUND"),
        ("/api/v1/models/own/..%2F..%2Fetc", 400, "INVALID_NAME"),
        ("/api/v1/models/own/%2e%2e/versions", 400, "INVALID_NAME"),
        ("/api/v1/models/own/churn%2Fversions", 400, "INVALID_NAME"),
        ("/api/v1/models/own/churn%00", 400, "INVALID"),
        ("/api/v1/models/own/churn%0a", 400, "INVALID"),
        ("/api/v1/models/own/%ff", 400, "INVALID"),
        ("/api/v1/models/own/churn%252e", 400, "INVALID_NAME"),
    ],
)
def test_addresses_that_are_none(root: InProcess, path: str, status: int, code: str) -> None:
    """A path is split, then decoded once; what is not in the table is not there."""
    check(root("GET", path), status, code)


def test_head_is_get_without_a_body(root: InProcess) -> None:
    """Probes ask with HEAD; the answer has the same head as GET's."""
    assert root("HEAD", "/health").status == 200
    assert root("HEAD", f"{V1}/whoami").headers["content-type"] == "application/json"


def test_a_fault_of_ours_is_told_in_one_line(house: House, tmp_path: Path) -> None:
    """What nobody expected is logged whole, and the caller sees an id and no trace."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret")

    house.catalog.list_models = fail  # type: ignore[method-assign]
    with in_process(create_app(house)) as client:
        problem = check(client("GET", f"{V1}/models"), 500, "MODELKEEP_ERROR")
    assert "secret" not in str(problem)


@pytest.mark.parametrize("cls", list(errors.BY_CODE.values()), ids=lambda cls: cls.__name__)
def test_every_error_has_a_status(cls: type[errors.ModelkeepError]) -> None:
    """Each class of the tree maps to an error's status, and those that may pass say when to come back."""
    error = cls("Told.", allow=["GET"])
    status = problems.status_of(error)
    assert 400 <= status < 600
    headers = dict(problems.headers_of(error, status))
    assert (b"retry-after" in headers) == (status in (429, 503))
    assert (b"www-authenticate" in headers) == (status == 401)
