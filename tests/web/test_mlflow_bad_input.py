"""Bad input at the MLflow door, by classes: each gets MLflow's error with a sentence, and changes nothing.

The classes are those of the other door's `test_bad_input`: characters that steer, what is too long, numbers
that do not fit, kinds that are not asked for, fields nobody knows, documents built to explode, tokens
made up, other origins.
"""

import json
import string
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House
from modelkeep.web.app import create_app
from modelkeep.web.mlflow import wire
from modelkeep.web.mlflow.rows import ROWS
from tests.web.inprocess import InProcess, Reply, in_process
from tests.web.world import opened

pytestmark = pytest.mark.req("U4", "T1")

API = "/api/2.0/mlflow/"
JSON = {"content-type": "application/json"}
NOW = 1_700_000_000_000
MANY = settings(max_examples=500)


def post(client: InProcess, path: str, body: Any = None, **more: Any) -> Reply:
    """Post to the door."""
    return client("POST", API + path, body, **more)


def events_of(house: House) -> int:
    """How many events there are."""
    return house.desk.read(SYSTEM_CONTEXT, lambda act: len(act.tx.events.after(0, limit=1_000)))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """One house for all tests here: what is refused leaves nothing behind."""
    with opened(tmp_path_factory.mktemp("data")) as found:
        yield found


@pytest.fixture(scope="module")
def client(house: House) -> Iterator[InProcess]:
    """Its application."""
    with in_process(create_app(house)) as found:
        yield found


@pytest.fixture
def run(client: InProcess) -> str:
    """A run."""
    made = post(client, "runs/create", {"experiment_id": "0", "run_name": "r"})
    return str(made.json()["run"]["info"]["run_id"])


def refused(reply: Reply, field: str | None = None) -> str:
    """The message of a refusal that a client understands and does not retry.

    Raises:
        AssertionError: it is none.
    """
    assert reply.status == 400, (reply.status, reply.body)
    answer = reply.json()
    assert answer["error_code"] == "INVALID_PARAMETER_VALUE"
    assert answer["message"].isprintable(), "a message steers no terminal"
    assert len(answer["message"]) < 500
    if field is not None:
        assert field in answer["message"]
    return str(answer["message"])


def state(client: InProcess, run: str) -> Any:
    """All that a run holds."""
    return client("GET", API + "runs/get", query={"run_id": run}).json()


CONTROLS = ["a\nb", "a\x00b", "a\x1b[31mb", "a\x7fb", "a\u202eb", "a\u2028b"]


@pytest.mark.parametrize("text", CONTROLS)
@pytest.mark.hostile("steering-text")
def test_characters_that_steer(house: House, client: InProcess, run: str, text: str) -> None:
    """Names and keys cannot hold what moves a terminal, a log or a reader's eye."""
    before, events = state(client, run), events_of(house)
    for path, body in (
        ("experiments/create", {"name": text}),
        ("experiments/update", {"experiment_id": "0", "new_name": text}),
        ("experiments/set-experiment-tag", {"experiment_id": "0", "key": text, "value": "v"}),
        ("runs/create", {"experiment_id": "0", "run_name": text}),
        ("runs/create", {"experiment_id": "0", "user_id": text}),
        ("runs/create", {"experiment_id": "0", "tags": [{"key": "mlflow.runName", "value": text}]}),
        ("runs/update", {"run_id": run, "run_name": text}),
        ("runs/log-metric", {"run_id": run, "key": text, "value": 1, "timestamp": NOW}),
        ("runs/log-parameter", {"run_id": run, "key": text, "value": "v"}),
        ("runs/set-tag", {"run_id": run, "key": text, "value": "v"}),
        ("logged-models", {"experiment_id": "0", "name": text}),
    ):
        refused(post(client, path, body))
    assert state(client, run) == before
    assert events_of(house) == events


@pytest.mark.parametrize(
    "key", ["../a", "/etc/passwd", "a//b", "a/../b", "a/./b", "a/", ".", "..", "C:\\x", "", " \t"]
)
@pytest.mark.hostile("path-tricks")
def test_keys_that_are_paths_elsewhere(client: InProcess, run: str, key: str) -> None:
    """A client may make a file of a key, so none leads out of its folder."""
    refused(post(client, "runs/log-metric", {"run_id": run, "key": key, "value": 1, "timestamp": NOW}), "key")
    refused(
        post(client, "runs/log-batch", {"run_id": run, "params": [{"key": key, "value": "v"}]}),
        "params[0].key",
    )
    assert state(client, run)["run"]["data"].keys() == {"tags"}


def test_values_that_no_database_holds(client: InProcess, run: str) -> None:
    """NUL and half a surrogate pair are refused, in values too."""
    refused(post(client, "runs/log-parameter", {"run_id": run, "key": "k", "value": "a\x00b"}), "NUL")
    half = b'{"run_id": "%s", "key": "k", "value": "a\\ud800"}' % run.encode()
    refused(post(client, "runs/log-parameter", raw=half, headers=JSON))
    assert "params" not in state(client, run)["run"]["data"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("experiments/create", {"name": "x" * 501}),
        ("runs/create", {"experiment_id": "0", "run_name": "x" * 251}),
        ("runs/create", {"experiment_id": "0", "user_id": "x" * 257}),
        ("runs/set-tag", {"run_id": "RUN", "key": "k" * 251, "value": "v"}),
        ("runs/log-parameter", {"run_id": "RUN", "key": "k" * 251, "value": "v"}),
        ("experiments/set-experiment-tag", {"experiment_id": "0", "key": "k", "value": "v" * 20_001}),
        ("runs/log-inputs", {"run_id": "RUN", "datasets": [{"dataset": {
            "name": "n", "digest": "d" * 37, "source_type": "s", "source": "s"}}]}),
        ("runs/log-batch", {"run_id": "RUN", "tags": [{"key": f"k{i}", "value": "v"} for i in range(101)]}),
        ("runs/outputs", {"run_id": "RUN", "models": [{"model_id": "m-" + "0" * 32}] * 1_001}),
        ("logged-models", {"experiment_id": "0", "name": "n" * 501}),
        ("runs/search", {"experiment_ids": ["0"], "filter": "a" * 5_000}),
        ("runs/search", {"experiment_ids": ["0"] * 3 + [str(i) for i in range(10_001)]}),
        ("runs/search", {"experiment_ids": ["0"], "order_by": ["start_time"] * 1_000}),
        ("runs/search", {"experiment_ids": ["0"], "page_token": "x" * 100_000}),
    ],
)  # fmt: skip
def test_what_is_too_long(client: InProcess, run: str, path: str, body: dict[str, Any]) -> None:
    """Each text, list and filter has a limit, and says it."""
    given = {name: run if value == "RUN" else value for name, value in body.items()}
    refused(post(client, path, given))


NUMBERS = [
    "9223372036854775808",
    "-9223372036854775809",
    "1e400",
    "1.5",
    '"1.5"',
    '"x"',
    "true",
    "[]",
    "{}",
    "9" * 5_000,
]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    ("path", "field", "body"),
    [
        ("runs/create", "start_time", {"experiment_id": "0"}),
        ("runs/update", "end_time", {"run_id": "RUN"}),
        ("runs/log-metric", "timestamp", {"run_id": "RUN", "key": "k", "value": 1}),
        ("runs/log-metric", "step", {"run_id": "RUN", "key": "k", "value": 1, "timestamp": 1}),
        ("runs/search", "max_results", {"experiment_ids": ["0"]}),
        ("experiments/search", "max_results", {}),
    ],
)
@pytest.mark.hostile("numbers")
def test_whole_numbers_that_do_not_fit(
    client: InProcess, run: str, path: str, field: str, body: dict[str, Any], number: str
) -> None:
    """Beyond 64 bits, fractions, words and other kinds are refused by the field's name, not rounded."""
    text = json.dumps({**body, field: "HERE"}).replace('"HERE"', number).replace("RUN", run)
    before = state(client, run)
    refused(
        post(client, path, raw=text.encode(), headers=JSON),
        None if "400" in number or len(number) > 99 else field,
    )
    assert state(client, run) == before


@pytest.mark.parametrize("value", ["true", "5", "null", "[]", "{}", "1.5"])
@pytest.mark.hostile("wrong-kinds")
def test_texts_that_are_none(client: InProcess, run: str, value: str) -> None:
    """Where text belongs nothing else is turned into it."""
    for path, field, body in (
        ("experiments/create", "name", {}),
        ("runs/log-parameter", "key", {"run_id": run, "value": "v"}),
        ("runs/set-tag", "value", {"run_id": run, "key": "k"}),
        ("runs/delete-tag", "key", {"run_id": run}),
        ("experiments/set-experiment-tag", "value", {"experiment_id": "0", "key": "k"}),
    ):
        text = json.dumps({**body, field: "HERE"}).replace('"HERE"', value)
        reply = post(client, path, raw=text.encode(), headers=JSON)
        if value == "null" and field == "value":
            continue  # null is absent, and an absent value is empty
        refused(reply, field)


def test_null_is_absent(client: InProcess, run: str) -> None:
    """As in protocol buffers, null says nothing; where something is needed it is missing."""
    assert "required" in refused(post(client, "experiments/create", {"name": None}), "name")
    reply = post(client, "runs/update", {"run_id": run, "status": None, "end_time": None, "run_name": None})
    assert reply.status == 200


@pytest.mark.hostile("wrong-kinds")
def test_unknown_fields(house: House, client: InProcess, run: str) -> None:
    """A client of our release, an older one, or somebody's own program is told of a field that nobody knows;
    a newer client's new fields are passed over, but not inside of what it logs."""
    body = {"run_id": run, "key": "k", "value": "v", "colour": "red"}
    for agent in (
        None,
        "mlflow-python-client/3.18.0",
        "mlflow-python-client/2.9.2",
        "curl/8.0",
        "mlflow-python-client/x",
    ):
        headers = {**JSON, **({"user-agent": agent} if agent else {})}
        refused(post(client, "runs/set-tag", body, headers=headers), "colour")
    newer = {**JSON, "user-agent": "mlflow-python-client/3.19.0"}
    assert post(client, "runs/set-tag", body, headers=newer).status == 200
    assert client("GET", API + "runs/get", query={"run_id": run, "view": "all"}, headers=newer).status == 200
    refused(client("GET", API + "runs/get", query={"run_id": run, "view": "all"}), "view")
    inside = {"run_id": run, "metrics": [{"key": "k", "value": 1, "timestamp": 1, "unit": "s"}]}
    refused(post(client, "runs/log-batch", inside, headers=newer), "unit")


@pytest.mark.hostile("document-bombs")
def test_a_key_that_stands_twice(client: InProcess, run: str) -> None:
    """Which of the two holds depends on who reads; neither does."""
    raw = b'{"run_id": "%s", "key": "k", "value": "one", "value": "two"}' % run.encode()
    refused(post(client, "runs/set-tag", raw=raw, headers=JSON))
    refused(client("GET", API + "runs/get", query=f"run_id={run}&run_id=other"))


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"name": "a"',
        b"\xff\xfe{}",
        b"null",
        b"5",
        b'""',
        b'"' + b"a" * 1_000_000 + b'"',
        b'"{\\"name\\": 5}"',
        b"{'name': 'a'}",
        b'{"name": NaN}',
    ],
)
@pytest.mark.hostile("document-bombs")
def test_documents_that_are_none(house: House, client: InProcess, raw: bytes) -> None:
    """Nesting without end, broken JSON, other encodings: refused quickly, and the server goes on."""
    before = events_of(house)
    refused(post(client, "experiments/create", raw=raw, headers=JSON))
    assert events_of(house) == before


def test_a_document_that_was_encoded_twice(client: InProcess) -> None:
    """Clients of long ago send their JSON as a JSON text."""
    raw = json.dumps(json.dumps({"name": "twice"})).encode()
    assert post(client, "experiments/create", raw=raw, headers=JSON).status == 200


@pytest.mark.hostile("document-bombs")
def test_a_body_that_is_too_large(client: InProcess) -> None:
    """10 MB are refused by the announced length, without being read."""
    reply = post(client, "runs/log-batch", raw=b"{}", headers={**JSON, "content-length": "10000000"})
    assert (reply.status, reply.json()["error_code"]) == (413, "INVALID_PARAMETER_VALUE")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
@pytest.mark.hostile("other-origins")
def test_bodies_of_another_kind(client: InProcess, kind: str) -> None:
    """What a form of another site can send without asking is not read as JSON."""
    reply = post(client, "experiments/create", raw=b'{"name": "a"}', headers={"content-type": kind})
    refused(reply, "application/json")


@pytest.mark.parametrize("token", ["abc", "=", "e30=", "MTIz", "W10", "x" * 3_000, "ÿ", "\x00"])
@pytest.mark.hostile("made-up-tokens")
def test_page_tokens_that_were_made_up(client: InProcess, run: str, token: str) -> None:
    """A token that we did not give, or gave for something else, is refused and not misread."""
    post(client, "runs/log-batch", {"run_id": run, "metrics": [
        {"key": "m", "value": 1, "timestamp": NOW + step, "step": step} for step in range(5)]})  # fmt: skip
    for _ in range(3):
        post(client, "runs/create", {"experiment_id": "0"})
    query = {"run_id": run, "metric_key": "m", "max_results": 2}
    history = client("GET", API + "metrics/get-history", query=query).json()["next_page_token"]
    search = post(client, "runs/search", {"experiment_ids": ["0"], "max_results": 2}).json()[
        "next_page_token"
    ]
    for made_up in (token, history):
        for path in ("runs/search", "logged-models/search"):
            refused(post(client, path, {"experiment_ids": ["0"], "max_results": 2, "page_token": made_up}))
        refused(post(client, "experiments/search", {"max_results": 2, "page_token": made_up}))
    for made_up in (token, search):
        refused(client("GET", API + "metrics/get-history", query={**query, "page_token": made_up}))
    other = {"experiment_ids": ["0"], "max_results": 2, "filter": "tags.a = 'b'", "page_token": search}
    refused(post(client, "runs/search", other))


@pytest.mark.parametrize("size", [0, -1, 50_001, 2**62])
@pytest.mark.hostile("numbers")
def test_page_sizes(client: InProcess, run: str, size: int) -> None:
    """No page is empty by request, and none is larger than a server can give."""
    refused(post(client, "runs/search", {"experiment_ids": ["0"], "max_results": size}), "50,000")
    refused(post(client, "experiments/search", {"max_results": size}), "50,000")
    if size < 1:
        query = {"run_id": run, "metric_key": "m", "max_results": size}
        refused(client("GET", API + "metrics/get-history", query=query))


@pytest.mark.parametrize(
    "clause",
    [
        "(" * 5_000,
        "metrics.a > 1 AND " * 500 + "metrics.a > 1",
        "tags.a LIKE '" + "%_" * 1_000 + "'",
        "params.a IN (" + ",".join("'a'" for _ in range(5_000)) + ")",
        "metrics.a = 'b' OR 1=1; DROP TABLE runs",
        "attributes.nothing = 'a'",
        "\x00",
    ],
)
@pytest.mark.hostile("filter-bombs")
def test_filters_made_to_explode(client: InProcess, run: str, clause: str) -> None:
    """A filter is refused in one sentence before it costs anything."""
    refused(post(client, "runs/search", {"experiment_ids": ["0"], "filter": clause}))


@pytest.mark.hostile("other-origins")
def test_pages_of_another_origin(house: House, client: InProcess) -> None:
    """A page of another site changes nothing, with or without the headers of new browsers."""
    before = events_of(house)
    for headers in (
        {"origin": "https://elsewhere.example"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "null"},
    ):
        reply = post(client, "experiments/create", {"name": "theirs"}, headers=headers)
        assert (reply.status, reply.json()["error_code"]) == (403, "PERMISSION_DENIED")
    reply = client(
        "GET", API + "experiments/get", query={"experiment_id": "0"}, headers={"host": "elsewhere.example"}
    )
    assert (reply.status, reply.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert events_of(house) == before


def test_workspaces_that_cannot_be(client: InProcess) -> None:
    """A workspace is a project's name, and nothing else."""
    for name in ("../x", "a b", "x" * 200, "a/b", "\xff"):
        reply = post(client, "experiments/create", {"name": "e"}, headers={"x-mlflow-workspace": name})
        refused(reply)


def test_a_batch_is_whole_or_nothing(client: InProcess, run: str) -> None:
    """What stands before the part that is refused is not kept either."""
    before = state(client, run)
    fine: dict[str, Any] = {
        "metrics": [{"key": "m", "value": 1, "timestamp": NOW}],
        "params": [{"key": "p", "value": "1"}],
        "tags": [{"key": "t", "value": "1"}],
    }
    for broken in (
        {"tags": [{"key": "t", "value": "1"}, {"key": "../t", "value": "1"}]},
        {"metrics": [{"key": "m", "value": 1, "timestamp": NOW}, {"key": "m", "value": 1, "timestamp": -1}]},
        {"params": [{"key": "p", "value": "1"}, {"key": "p", "value": "2"}]},
        {"metrics": [{"key": "m", "value": 1, "timestamp": NOW, "model_id": "m-" + "0" * 32}]},
    ):
        reply = post(client, "runs/log-batch", {"run_id": run, **fine, **broken})
        assert reply.status in (400, 404)
        assert state(client, run) == before


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    sorted({name for row in ROWS if row.body for name in row.body.__struct_fields__} | {"nothing"})
)
BODIES = st.dictionaries(NAMES, JSON_VALUES | st.sampled_from(["0", "1", "a", NOW]), max_size=6)
CHANGING = sorted({(row.method, row.path) for row in ROWS if row.body is not None and "{" not in row.path})
ASKING = sorted(
    {row.path for row in ROWS if row.method == "GET" and "{" not in row.path and "artifact" not in row.path}
)
ESCAPED = st.binary(max_size=30).map(lambda data: "".join(f"%{byte:02x}" for byte in data))


@MANY
@given(address=st.sampled_from(CHANGING), body=BODIES, newer=st.booleans())
@pytest.mark.hostile("wrong-kinds")
def test_no_body_breaks_a_row(client: InProcess, address: tuple[str, str], body: Any, newer: bool) -> None:
    """Whatever JSON comes, the answer is a document with a code, and never an error of ours."""
    agent = {"user-agent": "mlflow-python-client/9.0.0"} if newer else {}
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    reply = client(address[0], address[1], raw=raw, headers={**JSON, **agent})
    assert reply.status in (200, 400, 404, 409, 501), reply.body
    if reply.status != 200:
        assert {"error_code", "message"} <= reply.json().keys()


@MANY
@given(path=st.sampled_from(ASKING), query=st.text(string.printable, max_size=60) | ESCAPED)
def test_no_query_breaks_a_row(client: InProcess, path: str, query: str) -> None:
    """Whatever query comes, the answer is a document with a code, and never an error of ours."""
    reply = client("GET", path, query=query)
    assert reply.status in (200, 400, 404, 501), reply.body


@given(st.integers(0, 9_999), st.integers(0, 9_999))
def test_newer_is_by_number(major: int, minor: int) -> None:
    """Releases are compared as numbers: 3.9 is older than 3.18."""
    agent = f"mlflow-python-client/{major}.{minor}.0".encode()
    assert wire.is_newer({b"user-agent": agent}) == ((major, minor) > (3, 18))
