"""The description of an endpoint: it is OpenAPI, and its schemas take what the gateway takes and refuse what
it refuses."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.core.routing import Epoch, Route
from modelkeep.core.signature import DataType, Field, Signature
from modelkeep.serving import openapi
from modelkeep.serving.messages import Door
from modelkeep.serving.protocols import Decoder
from tests.serving import models

pytestmark = pytest.mark.req("S1")

FIELDS = (
    Field(name="age", type=DataType.INT32, minimum=0, maximum=150),
    Field(name="plan", type=DataType.STRING, categories=("basic", "pro")),
    Field(name="income", type=DataType.FLOAT64, nullable=True, required=False),
    Field(name="pair", type=DataType.FLOAT32, shape=(2,), required=False, nullable=True),
)
OUTPUTS = (
    Field(name="leaves", type=DataType.BOOL),
    Field(name="chance", type=DataType.FLOAT64, minimum=0, maximum=1),
)
SIGNATURE = Signature(inputs=FIELDS, outputs=OUTPUTS)
DECODER = Decoder(SIGNATURE)


def described(signature: Signature | None = SIGNATURE, *, closed: bool = False) -> dict[str, Any]:
    """The document of an endpoint with this signature, as it is sent."""
    spec = models.spec({"model.onnx": b"x"}, "1.2.0", signature=signature)
    route = Route(endpoint="churn", epoch=Epoch(1, 0), stable=spec.key)
    found: dict[str, Any] = json.loads(
        json.dumps(openapi.document(route, spec, "http://127.0.0.1:5001", closed=closed))
    )
    return found


def body_of(document: dict[str, Any], path: str) -> dict[str, Any]:
    """The schema of a request."""
    found: dict[str, Any] = document["paths"][path]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    return found


PREDICT = body_of(described(), "/endpoints/churn/predict")
INVOCATIONS = body_of(described(), "/endpoints/churn/invocations")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "age": st.one_of(st.integers(-5, 160), st.none(), st.just("x")),
    "plan": st.sampled_from(["basic", "pro", "gold", None, 3]),
    "income": st.one_of(st.floats(-1e6, 1e6), st.none(), st.just("x")),
    "pair": st.one_of(st.lists(st.floats(0, 1), min_size=1, max_size=3), st.none()),
    "more": st.just(1),
}
ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {name: VALUES[name] for name in ("age", "plan")},
            optional={name: VALUES[name] for name in ("income", "pair", "more")},
        ),
        st.tuples(*(VALUES[field.name] for field in FIELDS)).map(list),
    ),
    max_size=3,
)


def allowed(schema: dict[str, Any], value: Any) -> bool:
    """Whether a schema takes a document."""
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def taken(door: Door, value: Any) -> bool:
    """Whether the gateway takes a document."""
    try:
        DECODER.decode(door, json.dumps(value).encode())
    except errors.ModelkeepError:
        return False
    return True


@given(ROWS)
def test_the_schema_takes_what_the_gateway_takes(rows: list[Any]) -> None:
    """Rows as objects and as lists, by both doors: schema and decoder agree on each."""
    body = {"inputs": rows}
    assert allowed(PREDICT, body) == taken(Door.PREDICT, body)
    assert allowed(INVOCATIONS, body) == taken(Door.INVOCATIONS, body)
    if all(isinstance(row, dict) for row in rows):
        records = {"dataframe_records": rows}
        assert allowed(INVOCATIONS, records) == taken(Door.INVOCATIONS, records)


def test_columns_are_described_as_they_are_taken() -> None:
    """An object of columns, with all required ones and no others."""
    good = {"age": [1, 2], "plan": ["pro", "basic"]}
    for columns, right in ((good, True), ({**good, "x": [1, 2]}, False), ({"age": [1]}, False)):
        body = {"inputs": columns}
        assert allowed(PREDICT, body) is right
        assert taken(Door.PREDICT, body) is right


def test_the_answers_are_described() -> None:
    """Rows of one output are plain values, of several objects; both are what the doors give."""
    schema = described()["paths"]["/endpoints/churn/predict"]["post"]["responses"]["200"]
    answer = schema["content"]["application/json"]["schema"]
    assert allowed(answer, {"outputs": [{"leaves": True, "chance": 0.5}]})
    assert allowed(answer, {"outputs": {"leaves": [True], "chance": [0.5]}})
    assert not allowed(answer, {"outputs": [{"leaves": True, "chance": 1.5}]})
    assert not allowed(answer, {"predictions": []})


@pytest.mark.parametrize("signature", [SIGNATURE, None, Signature(inputs=FIELDS, positional=False)])
def test_every_schema_is_a_schema(signature: Signature | None) -> None:
    """With a signature, without one, and with one whose fields have no order."""
    document = described(signature)
    assert (document["openapi"], document["info"]["version"]) == ("3.1.0", "1.2.0")
    assert sorted(document["paths"]) == [
        "/endpoints/churn/invocations",
        "/endpoints/churn/predict",
        "/v2/models/churn/infer",
    ]
    for path in document["paths"]:
        post = document["paths"][path]["post"]
        jsonschema.Draft202012Validator.check_schema(body_of(document, path))
        good = post["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator.check_schema(good)
    assert allowed(body_of(document, "/endpoints/churn/predict"), {"inputs": [[1, 2]]}) is (signature is None)


def test_the_token_is_said_where_one_is_asked_for() -> None:
    """A gateway with callers' tokens says so; an open one does not."""
    assert described(closed=True)["security"] == [{"caller": []}]
    assert "security" not in described()
