"""From a path to a row: what the route table finds, and above all what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.web.routes import REST_MAX, Routes

pytestmark = pytest.mark.req("U4")


@pytest.fixture
def routes() -> Routes[str]:
    """Rows with fixed parts, with a parameter, and with the rest of a path."""
    found: Routes[str] = Routes()
    found.add("GET", "/files", "list")
    found.add("GET", "/files/{path...}", "read")
    found.add("PUT", "/files/{path...}", "write")
    found.add("GET", "/runs/{run}/files", "files of a run")
    found.add("GET", "/{path...}", "anything else")
    return found


@pytest.mark.parametrize(
    ("path", "target", "parameters"),
    [
        ("/files", "list", {}),
        ("/files/a", "read", {"path": "a"}),
        ("/files/a/b.c/d", "read", {"path": "a/b.c/d"}),
        ("/files/a%20b/%C3%BC", "read", {"path": "a b/\u00fc"}),
        ("/files/a%2520b", "read", {"path": "a%20b"}),
        ("/files/a/", "read", {"path": "a/"}),
        ("/files/" + "/".join("x" * 40), "read", {"path": "/".join("x" * 40)}),
        ("/runs/1/files", "files of a run", {"run": "1"}),
        ("/runs/1/other", "anything else", {"path": "runs/1/other"}),
        ("/runs/1", "anything else", {"path": "runs/1"}),
    ],
)
def test_what_is_found(routes: Routes[str], path: str, target: str, parameters: dict[str, str]) -> None:
    """Fixed parts come first, then a parameter, then the rest; each part is decoded exactly once."""
    assert routes.find("GET", path.encode()) == (target, parameters)


@pytest.mark.parametrize(
    "path",
    [
        "..", "a/../b", ".", "a/./b", "a//b", "//a", "%2e%2e", "%2E%2E/etc/passwd", "a/%2e%2e/b", "a%2Fb",
        "a%2f..%2fb", "..%2f..%2fetc", "a\\b", "a%5Cb", "..%5c..", "C:", "c:/windows", "C%3A/x", "a%00b",
        "a%0Ab", "a%7F", "%ff", "a%E2%80%AEb", "x" * (REST_MAX + 1),
    ],
)  # fmt: skip
def test_what_no_rest_can_be(routes: Routes[str], path: str) -> None:
    """Parts that lead elsewhere, hide a separator, or cannot be read are refused, never repaired."""
    with pytest.raises(errors.Invalid):
        routes.find("PUT", b"/files/" + path.encode())


def test_a_doubly_encoded_path_is_a_plain_name(routes: Routes[str]) -> None:
    """What is decoded once is a name with a percent sign in it, and means nothing."""
    assert routes.find("PUT", b"/files/%252e%252e%252fetc") == ("write", {"path": "%2e%2e%2fetc"})


def test_a_method_that_a_rest_does_not_take(routes: Routes[str]) -> None:
    """The address is there, and says what it takes."""
    with pytest.raises(errors.MethodNotAllowed) as refused:
        routes.find("DELETE", b"/files/a")
    assert refused.value.details["allow"] == ["GET", "PUT"]


def test_without_such_a_row_long_paths_lead_nowhere() -> None:
    """A table without rests finds nothing behind its rows."""
    found: Routes[str] = Routes()
    found.add("GET", "/a/{b}", "one")
    for path in ("/a", "/a/", "/a/b/c", "/" + "/".join("x" * 40), "", "a"):
        with pytest.raises(errors.RouteNotFound):
            found.find("GET", path.encode())


@given(st.binary(max_size=60))
def test_no_bytes_get_through_that_are_no_plain_names(raw: bytes) -> None:
    """Whatever comes, the rest of a path is plain names joined by slashes, or an error of ours."""
    found: Routes[str] = Routes()
    found.add("PUT", "/files/{path...}", "write")
    try:
        _, parameters = found.find("PUT", b"/files/" + raw)
    except (errors.Invalid, errors.NotFound):
        return
    parts = parameters["path"].split("/")
    assert all(part not in ("", ".", "..") for part in parts[:-1])
    assert parts[-1] not in (".", "..")
    assert all(part.isprintable() and "\\" not in part for part in parts)
    assert raw.count(b"/") == len(parts) - 1
