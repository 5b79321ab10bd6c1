"""Every address of MLflow 3.18 answers at once, and in a way that its client understands.

The addresses stand in golden/mlflow_routes.txt, taken from MLflow itself by the test that drives it; what the
ones that do something answer is in `test_mlflow_wire`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from modelkeep.web.app import OPERATIONS, create_app
from modelkeep.web.mlflow.absent import PARTS
from modelkeep.web.mlflow.rows import ROWS
from tests.mlflow_client import MlflowClient
from tests.web.inprocess import InProcess, in_process
from tests.web.world import opened

pytestmark = pytest.mark.req("T1")

ROUTES = Path(__file__).parents[1] / "golden" / "mlflow_routes.txt"
OF_PAGES = re.compile(
    r"/(build|static-files|gateway|get-artifact|model-versions|health)(/|$)|/$"
    r"|/ajax-api/3.0/(jobs|mlflow/assistant)"
    r"|.*(search-datasets|create-promptlab-run|upload-artifact|artifacts/files|get-artifact)$"
    r"|.*/presigned"
)
"""Addresses of MLflow's own pages and gateway, and of what is not here yet: nothing is there, as we say."""

LIST_ROUTES = """
import os, sys
os.environ["_MLFLOW_SERVER_FILE_STORE"] = "sqlite:///" + sys.argv[1]
from mlflow.server import app as flask
from mlflow.server.fastapi_app import app

found = {(method, rule.rule) for rule in flask.url_map.iter_rules() for method in rule.methods}

def walk(routes, prefix=""):
    for route in routes:
        inner = getattr(route, "original_router", None)
        if inner is not None:
            walk(inner.routes, prefix + route.include_context.prefix)
        elif getattr(route, "methods", None):
            found.update((method, prefix + route.path) for method in route.methods)

walk(app.routes)
for method, path in sorted(found, key=lambda each: each[::-1]):
    if method not in ("HEAD", "OPTIONS"):
        print(method, path)
"""


def _routes() -> list[tuple[str, str]]:
    """Method and path of each, with something in its places."""
    found = []
    for line in ROUTES.read_text(encoding="utf-8").splitlines():
        method, path = line.split()
        found.append((method, re.sub(r"<[^>]*>|\{[^}]*\}", "something", path)))
    return found


def test_every_address_answers(client: InProcess) -> None:
    """Each gives a JSON document with MLflow's code in it: none is a page, an error of ours, or silence."""
    nothing_there = []
    for method, path in _routes():
        body = None if method in ("GET", "DELETE") else {}
        reply = client(method, path, body)
        assert reply.status != 500, (method, path, reply.body)
        if reply.status < 400:
            continue
        answer = reply.json()
        if path.startswith(("/api/", "/ajax-api/", "/v1/", "/graphql")):
            assert answer["error_code"], (method, path)
            assert answer["message"], (method, path)
        if reply.status in (404, 405) and answer.get("error_code") != "RESOURCE_DOES_NOT_EXIST":
            nothing_there.append(f"{method} {path}")
    assert [each for each in nothing_there if not OF_PAGES.match(each.partition(" ")[2])] == []


def test_what_is_absent_says_so(client: InProcess) -> None:
    """A part that is off gives 501 and its sentence, below each prefix and with each method."""
    for part, sentence in PARTS.items():
        if part == "workspaces":
            continue
        for prefix in ("/api/2.0", "/api/3.0", "/ajax-api/2.0", "/ajax-api/3.0"):
            for method, rest in (("GET", ""), ("POST", ""), ("PATCH", "/x"), ("DELETE", "/x/y/z")):
                reply = client(method, f"{prefix}/mlflow/{part}{rest}")
                assert reply.status == 501, (method, prefix, part)
                assert reply.json()["error_code"] == "NOT_IMPLEMENTED"
                assert reply.json()["message"] == sentence


def test_what_is_neither_is_not_found(client: InProcess) -> None:
    """What MLflow does not have either is no operation, and a method that is none is refused."""
    reply = client("POST", "/api/2.0/mlflow/nothing/of/it", {})
    assert (reply.status, reply.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
    reply = client("GET", "/api/2.0/mlflow/runs/create")
    assert (reply.status, reply.json()["error_code"]) == (405, "ENDPOINT_NOT_FOUND")


def test_spans_are_refused_without_being_kept(client: InProcess) -> None:
    """What tracing sends as protocol buffers gets its answer, however large."""
    headers = {"content-type": "application/x-protobuf"}
    reply = client("POST", "/v1/traces", raw=b"\x0a" * 100_000, headers=headers)
    assert (reply.status, reply.json()["error_code"]) == (501, "NOT_IMPLEMENTED")


def test_rows_have_names_of_their_own() -> None:
    """No two rows share a name, for figures and refusals are told by it."""
    names = [row.name for row in OPERATIONS + ROWS]
    assert len(set(names)) == len(names)


def test_only_what_clients_ask_first_is_open(tmp_path: Path) -> None:
    """Without a token, only the version and what the server can do are told."""
    with opened(tmp_path, "token") as house, in_process(create_app(house)) as client:
        for method, path in _routes():
            if not path.startswith(("/api/", "/ajax-api/", "/v1/", "/version")):
                continue
            reply = client(method, path, None if method in ("GET", "DELETE") else {})
            if path.endswith(("/server-info", "/version")):
                assert reply.status == 200, path
            else:
                assert reply.status in (401, 404, 405), (method, path, reply.status)
                assert "Basic" not in reply.headers.get("www-authenticate", ""), (
                    "a browser would ask for a name"
                )
                if reply.status == 404:
                    assert reply.json()["error_code"] == "ENDPOINT_NOT_FOUND", (method, path)


@pytest.mark.parametrize("site", ["none", "cross-site"])
def test_the_links_of_the_client_lead_to_a_page(client: InProcess, site: str) -> None:
    """What a browser asks for behind "View run ... at ...", from wherever it comes: a plain page that says
    what to do, and nothing that it would run."""
    reply = client("GET", "/", headers={"accept": "text/html", "sec-fetch-site": site})
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert b"mlflow.get_run" in reply.body
    assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_the_version_is_plain_text(client: InProcess) -> None:
    """The client compares it with the releases from which parts exist."""
    reply = client("GET", "/version")
    assert (reply.headers["content-type"], reply.body) == ("text/plain; charset=utf-8", b"3.18.0")


@pytest.mark.long
def test_these_are_mlflows_addresses(
    mlflow_client: MlflowClient, tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    """The list is what MLflow itself registers."""
    golden("mlflow_routes.txt", mlflow_client.run(LIST_ROUTES, "", str(tmp_path / "m.db"), folder=tmp_path))
