"""Bad input at the HTTP door: each gets a clear error that names what is wrong, and changes nothing."""

import json
from typing import Any

import pytest

from modelkeep.core import codec
from modelkeep.core.values import ModelName
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.house import House
from tests.web.inprocess import InProcess, Reply
from tests.web.world import digest_of, entry_of, register

pytestmark = pytest.mark.req("U4")

V1 = "/api/v1"
CHURN = f"{V1}/models/default/churn"
DATA = b"some bytes of a model"
JSON = {"content-type": "application/json"}
FILES = [json.loads(codec.encode(entry_of("model.bin", DATA)))]


def events_of(house: House) -> int:
    """How many events there are: the measure of whether anything changed."""
    return house.desk.read(SYSTEM_CONTEXT, lambda act: len(act.tx.events.after(0, limit=1_000)))


def draft(client: InProcess, files: list[dict[str, Any]] = FILES, **spec: Any) -> Reply:
    """Announce a version of `churn`."""
    return client("POST", f"{CHURN}/drafts", {"files": files, **spec})


def upload(client: InProcess, draft_id: str, data: bytes, offset: int = 0, **more: Any) -> Reply:
    """Send bytes of its only file."""
    query = {"path": "model.bin", "offset": offset}
    return client("PUT", f"{V1}/drafts/{draft_id}/file", query=query, raw=data, **more)


@pytest.mark.parametrize(
    "name",
    [
        "chu\nrn",
        "chu\x00rn",
        "chu\x1b[31mrn",
        "team/churn",
        "..",
        "ch\u0443rn",
        "chu\u202ern",
        "\u212aelvin",
        "ﬁsh",
        "chu\u200brn",
        "churn ",
        "",
        "-churn",
        "x" * 129,
        "é" * 200,
        "\U0001f600" * 200,
    ],
)
def test_names(house: House, client: InProcess, name: str) -> None:
    """Control characters, slashes, confusable and over-long Unicode are refused, and steer no terminal."""
    reply = client("POST", f"{V1}/models", {"name": name})
    assert (reply.status, reply.code) in {(400, "INVALID_NAME"), (400, "MALFORMED_BODY")}
    assert "\x1b" not in reply.json()["detail"]
    assert events_of(house) == 0


def test_half_a_surrogate_pair(house: House, client: InProcess) -> None:
    """What is no Unicode is refused before it reaches a name."""
    reply = client(
        "POST", f"{V1}/models", raw=b'{"name": "a\\ud800"}', headers={"content-type": "application/json"}
    )
    assert (reply.status, reply.code) == (400, "MALFORMED_BODY")


def test_a_name_that_is_taken(house: House, client: InProcess) -> None:
    """A name, or one that differs in letter case only, is a conflict that names the one there is."""
    assert client("POST", f"{V1}/models", {"name": "churn"}).status == 201
    before = events_of(house)
    assert client("POST", f"{V1}/models", {"name": "churn"}).code == "MODEL_EXISTS"
    twin = client("POST", f"{V1}/models", {"name": "Churn"})
    assert (twin.status, twin.code) == (409, "MODEL_EXISTS")
    assert "churn" in twin.json()["detail"]
    assert events_of(house) == before


def test_a_version_that_exists(house: House, client: InProcess) -> None:
    """A number that is taken is refused before any byte is sent."""
    register(house, ModelName("default", "churn"), b"first", semver="1.0.0")
    before = events_of(house)
    reply = draft(client, semver="1.0.0")
    assert (reply.status, reply.code) == (409, "VERSION_EXISTS")
    assert "1.0.0" in reply.json()["detail"]
    assert events_of(house) == before


@pytest.mark.parametrize(
    "semver", ["01.2.3", "1.02.3", "1.2.03", "1.2.3-01", "1.2", "v1.2.3", "1.2.3.4", "", "1e3.0.0"]
)
def test_semvers(client: InProcess, semver: str) -> None:
    """Leading zeros, and whatever is no semantic version, are refused by name."""
    reply = draft(client, semver=semver)
    assert (reply.status, reply.code) == (400, "INVALID_SEMVER")


def test_a_version_below_the_inferred_one(house: House, client: InProcess) -> None:
    """A lower number than the change asks for is refused with the reasons."""
    register(house, ModelName("default", "churn"), b"first", semver="2.0.0")
    reply = draft(client, semver="1.0.0")
    assert (reply.status, reply.code) == (422, "SEMVER_TOO_LOW")


@pytest.mark.hostile("document-bombs")
def test_a_large_body_is_refused_unread(client: InProcess) -> None:
    """10 MB of JSON: 413 by its announced length, without reading any of it."""
    reply = client(
        "POST",
        f"{V1}/models",
        raw=b"{}",
        headers={"content-type": "application/json", "content-length": "10000000"},
    )
    assert (reply.status, reply.code) == (413, "BODY_TOO_LARGE")
    unannounced = client(
        "POST", f"{V1}/models", parts=[b" " * 1_000_000] * 10, headers={"content-type": "application/json"}
    )
    assert (unannounced.status, unannounced.code) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"0.9"', "9" * 5_000])
@pytest.mark.hostile("numbers")
def test_metrics_that_are_no_numbers(client: InProcess, value: str) -> None:
    """A metric is a finite number, whatever way it is written."""
    body = json.dumps({"files": FILES, "metrics": [{"name": "accuracy", "value": "HERE"}]})
    reply = client("POST", f"{CHURN}/drafts", raw=body.replace('"HERE"', value).encode(), headers=JSON)
    assert (reply.status, reply.code) in {(400, "MALFORMED_BODY"), (400, "INVALID_METRIC")}


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "a\\b",
        "C:evil",
        "a//b",
        ".",
        "a/.",
        "a\nb",
        "a\x00b",
        "a.",
        "x" * 2_000,
    ],
)
@pytest.mark.hostile("path-tricks")
def test_paths_that_lead_out(house: House, client: InProcess, path: str) -> None:
    """A file of a version is named by a plain relative path: refused, never repaired."""
    reply = draft(client, files=[{**FILES[0], "path": path}])
    assert (reply.status, reply.code) == (400, "INVALID_MANIFEST")


def test_an_upload_names_only_what_was_announced(house: House, client: InProcess) -> None:
    """Bytes go where a draft said, and nowhere else."""
    found = draft(client).json()["id"]
    for path in ("other.bin", "../model.bin", "model.bin/.."):
        reply = client("PUT", f"{V1}/drafts/{found}/file", query={"path": path}, raw=DATA)
        assert (reply.status, reply.code) == (404, "FILE_NOT_IN_VERSION")


def test_an_upload_that_breaks_off_goes_on(house: House, client: InProcess) -> None:
    """What came before the break is kept, a wrong offset is told the right one, and the rest completes it."""
    found = draft(client).json()["id"]
    assert upload(client, found, DATA[:7]).json()["offset"] == 7
    assert client("GET", f"{V1}/drafts/{found}").json()["files"][0]["offset"] == 7
    wrong = upload(client, found, DATA[3:], offset=3)
    assert (wrong.status, wrong.code, wrong.json()["details"]["offset"]) == (409, "OFFSET_MISMATCH", 7)
    early = client("POST", f"{V1}/drafts/{found}/finalize")
    assert (early.status, early.json()["details"]["missing"]) == (409, ["model.bin"])
    assert client("GET", CHURN).status == 404, "nothing is to be seen before it is finalized"
    assert upload(client, found, DATA[7:], offset=7).json()["present"] is True
    made = client("POST", f"{V1}/drafts/{found}/finalize").json()
    assert made["version"]["semver"] == "1.0.0"
    query = {"ref": "churn:1.0.0", "path": "model.bin"}
    assert client("GET", f"{V1}/version/file", query=query).body == DATA


def test_an_upload_of_other_bytes(house: House, client: InProcess) -> None:
    """Bytes that are not those announced are thrown away; the sender begins again and succeeds."""
    found = draft(client).json()["id"]
    wrong = upload(client, found, b"x" * len(DATA))
    assert (wrong.status, wrong.code) == (422, "DIGEST_MISMATCH")
    assert wrong.json()["details"]["actual"] == digest_of(b"x" * len(DATA))
    assert client("GET", f"{V1}/drafts/{found}").json()["files"][0]["offset"] == 0
    longer = upload(client, found, DATA + b"more")
    assert (longer.status, longer.code) == (400, "LIMIT_EXCEEDED")
    assert upload(client, found, DATA).json()["present"] is True


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("metrics.accuracy >", 18),
        ("metrics.accuracy > > 1", 19),
        ("(name = 'churn'", 15),
        ("nonsense = 1", 0),
        ("name = 'churn", 7),
    ],
)
def test_filters_that_nobody_can_parse(client: InProcess, text: str, place: int) -> None:
    """A filter's error points at the place, under the text."""
    reply = client("GET", f"{V1}/versions", query={"filter": text})
    assert (reply.status, reply.code) == (400, "INVALID_FILTER")
    line, caret = reply.json()["details"]["caret"].split("\n")[:2]
    assert line.startswith(text[:20])
    assert caret.index("^") == place


@pytest.mark.hostile("filter-bombs")
def test_filter_bombs(client: InProcess) -> None:
    """Depth and length of a filter are bounded."""
    for text in ("(" * 2_000 + "name = 'a'" + ")" * 2_000, " or ".join(["name = 'a'"] * 300)):
        assert client("GET", f"{V1}/versions", query={"filter": text}).status == 400


@pytest.mark.parametrize("token", ["zzz", "", "A" * 1_999, "../..", "eyJhIjoxfQ", "\u2603"])
@pytest.mark.parametrize("path", ["/models", "/versions", "/endpoints", "/rollouts", "/requests", "/tokens"])
@pytest.mark.hostile("made-up-tokens")
def test_page_tokens_that_are_none(client: InProcess, path: str, token: str) -> None:
    """A page token that is not one of ours is a 400 or an empty page, never a fault."""
    reply = client("GET", V1 + path, query={"page_token": token})
    assert reply.status in (200, 400)


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "9" * 100, "1.5", "ten", ""])
def test_page_limits(client: InProcess, limit: str) -> None:
    """A page has between 1 and 1,000 rows."""
    assert client("GET", f"{V1}/models", query={"limit": limit}).status == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
        {"origin": "http://["},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": "http://localhost"},
    ],
)
@pytest.mark.hostile("other-origins")
def test_pages_of_another_origin(house: House, client: InProcess, headers: dict[str, str]) -> None:
    """A page that somebody visits changes nothing here."""
    reply = client("POST", f"{V1}/models", {"name": "churn"}, headers=headers)
    assert (reply.status, reply.code) == (403, "NOT_ALLOWED")
    assert events_of(house) == 0


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": "http://localhost"}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}],
)
def test_pages_of_our_own_origin(client: InProcess, headers: dict[str, str]) -> None:
    """Our own pages, what a person types, and what is no browser may."""
    assert client("POST", f"{V1}/models", {"name": "churn"}, headers=headers).status == 201


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:5000", "", "localhost.evil.example", "127.0.0.1.evil"]
)
@pytest.mark.hostile("other-origins")
def test_hosts_that_are_not_ours(client: InProcess, host: str) -> None:
    """A name that somebody has resolve to this machine is refused, but for the health probe."""
    assert client("GET", f"{V1}/whoami", headers={"host": host}).code == "NOT_ALLOWED"
    assert client("GET", "/health", headers={"host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:5000", "127.0.0.1:1", "[::1]:5000", "[::1]", "10.1.2.3:80"]
)
def test_hosts_that_are_ours(client: InProcess, host: str) -> None:
    """Loopback names and plain addresses are ours, with any port."""
    assert client("GET", f"{V1}/whoami", headers={"host": host}).status == 200


@pytest.mark.parametrize("name", ["host", "authorization", "content-type", "idempotency-key"])
@pytest.mark.hostile("split-requests")
def test_headers_that_decide_stand_once(client: InProcess, name: str) -> None:
    """Two of a header that decides something could be read differently by what stands in front of us."""
    reply = client(
        "GET", f"{V1}/whoami", headers=[("host", "localhost"), (name, "localhost"), (name, "localhost")]
    )
    assert reply.status == 400


@pytest.mark.parametrize("key", ["", "two words", "x" * 129, "a\tb", "é"])
@pytest.mark.hostile("made-up-tokens")
def test_idempotency_keys_that_are_none(house: House, client: InProcess, key: str) -> None:
    """A key that cannot be one is refused, for it would not protect."""
    reply = client("POST", f"{V1}/models", {"name": "churn"}, headers={"idempotency-key": key})
    assert (reply.status, reply.code) == (400, "INVALID")
    assert events_of(house) == 0


def test_a_policy_that_is_none(house: House, client: InProcess) -> None:
    """A policy is checked before it holds; the message says where."""
    for raw in (
        b"stages: [",
        b"!!python/object/apply:os.system ['true']",
        b"a: &a [*a]",
        b"\xff",
        b"x" * 300_000,
    ):
        reply = client("PUT", f"{V1}/policy", raw=raw)
        assert reply.status in (400, 413), raw[:20]
    assert events_of(house) == 0
