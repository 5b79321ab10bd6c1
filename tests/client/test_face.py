"""The public face: what it names, what it costs, and that the client says every word of the server."""

import subprocess
import sys
from typing import Any, get_args, get_origin

import msgspec
import pytest

import modelkeep
from modelkeep import client
from modelkeep.client import Client
from modelkeep.client import answers as wire
from modelkeep.core import errors

OTHER_FACES = {"gateway_table", "gateway_report", "gateway_blob", "ask_verdict", "metrics", "openapi"}
"""Operations of gateways, Flagger, Prometheus and OpenAPI tools; the SDK has no use for them."""
UNWRAPPED = {"imported_files", "missing_files", "send_file"}
"""Operations of which the client hands out what is inside the answer, or nothing where there is no news."""
RENAMED = {"compare": "comparison"}
"""`compare` gives a DataFrame; the answer as it is has another name."""


@pytest.mark.req("U2")
def test_the_face_is_what_it_says() -> None:
    """Every name in __all__ is there and is what it is called; no other is."""
    for name in modelkeep.__all__:
        assert getattr(modelkeep, name) is not None
    assert issubclass(modelkeep.Client, Client)
    assert modelkeep.NotFound is errors.NotFound
    assert dir(modelkeep) == sorted(modelkeep.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = modelkeep.nothing


@pytest.mark.req("U2")
def test_importing_costs_little() -> None:
    """`import modelkeep` draws in neither client nor server; `bench/start_times` measures it."""
    script = "import sys, modelkeep; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"msgspec", "http", "modelkeep.client", "numpy", "sqlalchemy"} & set(done.stdout.split())


@pytest.mark.req("U2")
def test_the_client_takes_its_address_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """MODELKEEP_URL holds where nothing is said; what is said holds always."""
    monkeypatch.setenv("MODELKEEP_URL", "http://127.0.0.1:1234")
    assert modelkeep.Client().url == "http://127.0.0.1:1234"
    assert modelkeep.Client("http://127.0.0.1:4321/").url == "http://127.0.0.1:4321"
    monkeypatch.setenv("MODELKEEP_UNHEARD_OF", "1")
    with pytest.raises(modelkeep.Invalid):
        modelkeep.Client()


@pytest.mark.req("U2", "U4")
def test_the_client_says_every_word_of_the_server() -> None:
    """Each operation of the route table is a method of the client, under its name."""
    from modelkeep.web.app import OPERATIONS

    missing = [
        row.name
        for row in OPERATIONS
        if row.name not in OTHER_FACES
        and not callable(getattr(Client, RENAMED.get(row.name, row.name), None))
    ]
    assert not missing


@pytest.mark.req("U2", "U4")
def test_the_client_reads_what_the_server_answers() -> None:
    """For each operation, what the client reads is what the server answers: most often the same shape of the
    core, else one with the same fields and types (a page of a list, an all-clear)."""
    from modelkeep.web.app import OPERATIONS

    differing = []
    for row in OPERATIONS:
        if row.name in OTHER_FACES | UNWRAPPED or row.answer is bytes:
            continue
        read = _read_by(RENAMED.get(row.name, row.name))
        if _plain_schema(read) != _plain_schema(row.answer):
            differing.append(row.name)
    assert not differing


def _read_by(method: str) -> Any:
    """The shape behind a method's return annotation; a Listing reads pages."""
    import typing

    answer = typing.get_type_hints(getattr(Client, method))["return"]
    if get_origin(answer) is wire.Listing:
        return wire.Page[get_args(answer)]  # type: ignore[misc]  # made at run time
    return answer


def _plain_schema(kind: Any) -> Any:
    """The JSON schema of a shape without what only people read and without defaults, for the server sends
    every field.
    """

    def plain(value: Any, components: dict[str, Any], inside: tuple[str, ...]) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                name = value["$ref"].rpartition("/")[2]
                if name in inside:
                    return name
                return plain(components[name], components, (*inside, name))
            return {
                key: plain(part, components, inside)
                for key, part in value.items()
                if key not in ("title", "description", "default")
                and not (key == "required" and isinstance(part, list))
            }
        if isinstance(value, list):
            return [plain(item, components, inside) for item in value]
        return value

    (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    return plain(schema, components, ())


@pytest.mark.req("U2")
def test_a_secret_is_not_in_a_repr() -> None:
    """Neither the client nor a new token shows its secret where it could be logged."""
    from modelkeep.core.access import TokenInfo
    from modelkeep.core.answers import NewToken
    from tests.client.samples import T0

    info = TokenInfo(
        id="t", principal="ada", label="", verbs=None, project=None, created_at=T0, expires_at=T0
    )
    assert "mk_u_secret" not in repr(NewToken(info=info, secret="mk_u_secret"))
    assert "mk_u_secret" not in repr(client.Client("http://127.0.0.1:1", token="mk_u_secret"))


@pytest.mark.req("U2")
@pytest.mark.long
def test_a_type_checker_sees_the_types() -> None:
    """A program that uses the SDK is checked with the types that it has (tests/client/typed_use.py)."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "tests/client/typed_use.py"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
