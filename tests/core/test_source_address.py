"""Addresses that a version is registered from: the four kinds, their one canonical form, and everything that
is none of them."""

from contextlib import suppress
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.source_address import (
    LoggedModelPlace,
    RunPlace,
    StoredPlace,
    VersionPlace,
    address,
    parse_source,
)
from modelkeep.core.values import Aliased, Exact, ModelName, Numbered, Ref, Staged

RUN = "0123456789abcdef0123456789abcdef"
LOGGED = f"m-{RUN}"
HOST = "registry.example:5000"
ROUTE = "api/2.0/mlflow-artifacts/artifacts"


def version(selector: Numbered | Exact | Aliased | Staged, name: str = "churn") -> VersionPlace:
    """A version of a model in the project `risk`."""
    return VersionPlace(ref=Ref(model=ModelName("risk", name), selector=selector))


@pytest.mark.req("T3")
@pytest.mark.parametrize(
    ("text", "place"),
    [
        (f"runs:/{RUN}/model", RunPlace(run_id=RUN, path="model")),
        (f"RUNS:/{RUN}/a b/c", RunPlace(run_id=RUN, path="a b/c")),
        (f"models:/{LOGGED}", LoggedModelPlace(model_id=LOGGED)),
        (f"models:/{LOGGED}/part", LoggedModelPlace(model_id=LOGGED, path="part")),
        ("models:/churn/7", version(Numbered(7))),
        ("models:/churn/2.1.0", version(Exact("2.1.0"))),
        ("models:/churn@champion", version(Aliased("champion"))),
        ("models:/churn/Production", version(Staged("production"))),
        ("models:/My Model (v2)/1", version(Numbered(1), "My Model (v2)")),
        (f"mlflow-artifacts:/0/{RUN}/artifacts/model", StoredPlace(path=f"0/{RUN}/artifacts/model")),
        (f"mlflow-artifacts:///0/{RUN}/artifacts", StoredPlace(path=f"0/{RUN}/artifacts")),
        (f"mlflow-artifacts://{HOST}/0/{RUN}/artifacts", StoredPlace(path=f"0/{RUN}/artifacts")),
        (f"mlflow-artifacts://{HOST.upper()}/0/x", StoredPlace(path="0/x")),
        (f"http://{HOST}/{ROUTE}/0/x", StoredPlace(path="0/x")),
        (f"https://{HOST}/{ROUTE}/0/x", StoredPlace(path="0/x")),
        (
            "mlflow-artifacts:/registered-models/risk/churn/1",
            StoredPlace(path="registered-models/risk/churn/1"),
        ),
    ],
)
def test_the_places_there_are(text: str, place: object) -> None:
    """Every address that a client makes of this server's files is read, and its canonical form is the same
    place."""
    found = parse_source(text, project="risk", host=HOST)
    assert found == place
    assert parse_source(address(found), project="risk") == found


ELSEWHERE = [
    "",
    "model",
    "/etc/passwd",
    "./mlruns/0",
    "C:/windows/system32",
    "c:\\windows",
    "\\\\host\\share",
    "file:/etc/passwd",
    "file:///etc/passwd",
    "FILE:///etc/passwd",
    "fi%6ce:///etc/passwd",
    "s3://bucket/model",
    "gs://bucket/model",
    "dbfs:/model",
    "hdfs://host/model",
    "ftp://host/model",
    "data:text/plain,x",
    "javascript:alert(1)",
    "http://evil.example/model",
    "http://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/model",
    f"http://evil.example/{ROUTE}/0/x",
    f"http://{HOST}/",
    f"http://{HOST}/api/2.0/mlflow/runs/get",
    f"http://{HOST}/x/{ROUTE}/0/x",
    f"http:/{HOST}/{ROUTE}/0/x",
    f"http:{HOST}/{ROUTE}/0/x",
    f"http://{HOST}//{ROUTE}/0/x",
    f"http://bob:secret@{HOST}/{ROUTE}/0/x",
    f"http://{HOST}@evil.example/{ROUTE}/0/x",
    f"http://{HOST}:80/{ROUTE}/0/x",
    f"http://{HOST}.evil.example/{ROUTE}/0/x",
    "mlflow-artifacts://evil.example/0/x",
    f"mlflow-artifacts://{HOST}@evil.example/0/x",
    f"mlflow-artifacts://bob:secret@{HOST}/0/x",
    f"mlflow-artifacts://{HOST}",
    "mlflow-artifacts:",
    "mlflow-artifacts:/",
    "mlflow-artifacts:0/x",
    "mlflow-artifacts:////0/x",
    "mlflow-artifacts:/../x",
    "mlflow-artifacts:/0/../x",
    "mlflow-artifacts:/0/./x",
    "mlflow-artifacts:/0//x",
    "mlflow-artifacts:/0/x/",
    "mlflow-artifacts:/0/%2e%2e/x",
    "mlflow-artifacts:/0/%252e%252e/x",
    "mlflow-artifacts:/0/..%2fx",
    "mlflow-artifacts:/0/..\\x",
    "mlflow-artifacts:/0/x?a=1",
    "mlflow-artifacts:/0/x#/../../etc",
    "mlflow-artifacts:/0/x\x00",
    "mlflow-artifacts:/0/x\n",
    "mlflow-artifacts:/0/\u202ex",
    "mlflow-artifacts:/0/x\u2028",
    "mlflow-artifacts:/0/\uff0e\uff0e/\u200bx",
    "mlflow-artifacts:/0/c:/x",
    "mlflow-artifacts:/0/x.",
    "mlflow-artifacts:/0/x ",
    "mlflow-artifacts:/" + "a/" * 600 + "a",
    "mlflow-artifacts:/" + "x" * 10_000,
    "runs:",
    "runs:/",
    f"runs:/{RUN}",
    f"runs:/{RUN}/",
    f"runs://{RUN}/model",
    f"runs://evil.example/{RUN}/model",
    f"runs:///{RUN}/model",
    f"runs:/{RUN}//model",
    f"runs:/{RUN}/../{RUN}/model",
    f"runs:/{RUN}/..",
    f"runs:/{RUN}/a/../../b",
    f"runs:/{RUN}/model?x",
    f"runs:/{RUN}/model#x",
    f"runs:/{RUN}/mo%64el",
    "runs:/../x/model",
    "runs:/-x/model",
    f"runs:/{'a' * 300}/model",
    "models:",
    "models:/",
    "models:/churn",
    "models:/churn/",
    "models:/churn/1/2",
    "models:/churn/../1",
    "models:/churn/1?a=1",
    "models:/churn/1#x",
    "models:/churn%2f1",
    "models://evil.example/churn/1",
    "models:///churn/1",
    "models:/risk/churn/1",
    "models:/churn/0",
    "models:/churn/99999999999999999999999",
    "models:/churn/-1",
    "models:/churn@",
    "models:/@champion",
    f"models:/{LOGGED}/../x",
    f"models:/{LOGGED}/",
    f"models:/{LOGGED.upper()}",
    "models:/\u0441hurn/1",
    "models:/churn\ud800/1",
    "prompt-template",
]


@pytest.mark.req("T4")
@pytest.mark.parametrize("text", ELSEWHERE, ids=lambda text: ascii(text)[:40])
def test_nothing_else_is_a_place(text: str) -> None:
    """Files of the machine, other servers, encoded tricks, dots, user names, queries and fragments: each is
    refused with one sentence that can be shown, and that holds no secret."""
    with pytest.raises(errors.Invalid) as caught:
        parse_source(text, host=HOST)
    assert caught.value.message.isprintable()
    assert "secret" not in caught.value.message
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("text", [f"mlflow-artifacts://{HOST}/0/x", f"http://{HOST}/{ROUTE}/0/x"])
def test_without_knowing_itself_no_host_is_its_own(text: str) -> None:
    """A server that does not know what the client calls it takes no address with a host."""
    with pytest.raises(errors.InvalidParameter, match="another server"):
        parse_source(text)


PARTS = st.text("ab.%2ef/\\:@#? ", max_size=12)


@pytest.mark.req("T4")
@given(
    st.sampled_from(
        ["runs:/", f"runs:/{RUN}/", "models:/", "mlflow-artifacts:/", f"http://{HOST}/{ROUTE}/", "file:/", ""]
    ),
    PARTS,
)
def test_what_is_read_is_read_in_one_way(start: str, rest: str) -> None:
    """Whatever passes stays below its root in every reading: no dots, no empty parts, nothing encoded; its
    canonical form is the same place; and encoding it makes it no place, or leaves it as it was."""
    text = start + rest
    try:
        place = parse_source(text, host=HOST)
    except errors.Invalid:
        return
    assert not set(text) & set("%\\?#")
    assert text.startswith(("runs:/", "models:/", "mlflow-artifacts:/", f"http://{HOST}/{ROUTE}/"))
    if not isinstance(place, VersionPlace):
        assert all(part not in ("", ".", "..") for part in place.path.split("/") if place.path)
    assert parse_source(address(place)) == place
    if quote(rest) != rest:
        with pytest.raises(errors.Invalid):
            parse_source(start + quote(rest), host=HOST)


@given(st.text(max_size=60))
def test_any_text_is_a_place_or_refused(text: str) -> None:
    """Whatever comes, it is a place or refused: no other error gets out."""
    for given_text in (text, f"runs:/{text}", f"models:/{text}", f"mlflow-artifacts:{text}", f"http:{text}"):
        with suppress(errors.Invalid):
            assert address(parse_source(given_text, host=HOST)).isprintable()
