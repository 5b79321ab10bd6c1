"""An endpoint's description in OpenAPI 3.1, made from the signature of the version that answers there.

Only what the gateway enforces is said: names, types, ranges, categories, shapes and what may be missing.
Without a signature rows are any plain values. It describes; it checks nothing.
"""

from typing import Any

from modelkeep.core.routing import Route, VersionSpec
from modelkeep.core.signature import DataType, Field, Signature

OPENAPI = "3.1.0"
_TYPES: dict[DataType, dict[str, Any]] = {
    DataType.BOOL: {"type": "boolean"},
    DataType.INT32: {"type": "integer", "format": "int32"},
    DataType.INT64: {"type": "integer", "format": "int64"},
    DataType.FLOAT32: {"type": "number", "format": "float"},
    DataType.FLOAT64: {"type": "number", "format": "double"},
    DataType.STRING: {"type": "string"},
    DataType.DATETIME: {"type": "string", "format": "date-time"},
    DataType.BYTES: {"type": "string", "contentEncoding": "base64"},
}
_PLAIN: dict[str, Any] = {
    "oneOf": [{"type": "array", "items": {}, "minItems": 1}, {"type": "object"}],
    "description": "Rows as lists or objects, or an object of columns; this version has no signature.",
}
_PROBLEM: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "error", "request_id"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "description": "What went wrong, in one word that does not change."},
        "detail": {"type": "string", "description": "What to do next."},
        "error": {"type": "string", "description": "The detail, as the Open Inference Protocol names it."},
        "request_id": {"type": "string"},
        "details": {"type": "object", "description": "Such as the row and the field that were refused."},
    },
}
_STATUSES = {
    "400": "The body is not what the protocol asks for.",
    "413": "Too much at a time.",
    "422": "The input breaks the signature; details name row and field.",
    "500": "The version failed, or broke its own signature.",
    "503": "Nobody can answer just now; Retry-After says when to try again.",
    "504": "Nobody answered in time.",
}


def document(route: Route, spec: VersionSpec, url: str, *, closed: bool) -> dict[str, Any]:
    """The description of an endpoint whose stable version this is.

    Args:
        url: where the gateway is reached.
        closed: whether callers show a token.
    """
    signature = spec.signature or Signature()
    name = route.endpoint
    rows, columns = _rows(signature), _columns(signature)
    either = {"oneOf": [rows, columns]} if signature.inputs else _PLAIN
    answers = _answers(signature)
    predict = {**_object("inputs", either), "additionalProperties": False}
    found: dict[str, Any] = {
        "openapi": OPENAPI,
        "info": {
            "title": name,
            "version": spec.semver,
            "description": f"Predictions of {spec.label}, which answers on {name} now.",
        },
        "servers": [{"url": url}],
        "paths": {
            f"/endpoints/{name}/predict": _path("predict", "Predict.", predict, _object("outputs", answers)),
            f"/endpoints/{name}/invocations": _path(
                "invocations",
                "Predict by MLflow's scoring protocol.",
                _scoring(either, rows, signature),
                _object("predictions", answers["oneOf"][0]),
                csv=True,
            ),
            f"/v2/models/{name}/infer": _path(
                "infer", "Predict by the Open Inference Protocol.", _infer(), _inferred()
            ),
        },
        "components": {"schemas": {"Problem": _PROBLEM}},
    }
    if closed:
        found["components"]["securitySchemes"] = {"caller": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"caller": []}]
    return found


def _path(name: str, summary: str, body: Any, answer: Any, *, csv: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": body}}
    if csv:
        content["text/csv"] = {"schema": {"type": "string", "description": "A header line, then rows."}}
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refusals = {status: {"description": text, "content": problem} for status, text in _STATUSES.items()}
    good = {
        "description": "The predictions, one for each row.",
        "headers": {
            "X-Modelkeep-Version": {"description": "Who answered.", "schema": {"type": "string"}},
            "X-Request-Id": {"description": "For feedback and questions.", "schema": {"type": "string"}},
        },
        "content": {"application/json": {"schema": answer}},
    }
    timeout = {
        "name": "X-Request-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "How long the caller waits; what cannot be answered by then is not computed.",
        "schema": {"type": "integer", "minimum": 1},
    }
    operation = {
        "operationId": name,
        "summary": summary,
        "parameters": [timeout],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": good, **refusals},
    }
    return {"post": operation}


def _object(name: str, schema: Any) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}}


def value_of(field: Field) -> dict[str, Any]:
    """One row's value of a field as JSON Schema."""
    kind = dict(_TYPES[field.type])
    if field.categories is not None:
        kind = {"enum": list(field.categories)}
    for word, bound in (("minimum", field.minimum), ("maximum", field.maximum)):
        if bound is not None:
            kind[word] = bound
    for length in reversed(field.dimensions):
        kind = {"type": "array", "items": kind}
        if length >= 0:
            kind |= {"minItems": length, "maxItems": length}
    return {"oneOf": [kind, {"type": "null"}]} if field.nullable else kind


def _rows(signature: Signature) -> dict[str, Any]:
    """Rows as objects, or as lists where the order of the fields is the model's."""
    fields = signature.inputs
    row: dict[str, Any] = {
        "type": "object",
        "properties": {field.name: value_of(field) for field in fields},
        "required": [field.name for field in fields if field.required],
        "additionalProperties": False,
    }
    if signature.positional:
        size = len(fields)
        listed = {"type": "array", "prefixItems": [value_of(field) for field in fields], "items": False}
        row = {"oneOf": [row, {**listed, "minItems": size, "maxItems": size}]}
    return {"type": "array", "minItems": 1, "items": row}


def _columns(signature: Signature) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            field.name: {"type": "array", "minItems": 1, "items": value_of(field)}
            for field in signature.inputs
        },
        "required": [field.name for field in signature.inputs if field.required],
        "additionalProperties": False,
    }


def _answers(signature: Signature) -> dict[str, Any]:
    """One answer for each row, in the form that was asked."""
    fields = signature.outputs
    one = value_of(fields[0]) if len(fields) == 1 else {}
    if len(fields) > 1:
        one = {"type": "object", "properties": {field.name: value_of(field) for field in fields}}
    columns = {field.name: {"type": "array", "items": value_of(field)} for field in fields}
    rows = {"type": "array", "items": one}
    return {"oneOf": [rows, {"type": "object", "properties": columns}]}


def _scoring(either: Any, rows: Any, signature: Signature) -> dict[str, Any]:
    split = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "columns": {"type": "array", "items": {"type": ["string", "integer"]}},
            "data": {"type": "array", "minItems": 1, "items": {"type": "array"}},
            "index": {"type": "array"},
        },
        "additionalProperties": False,
    }
    records = rows if signature.inputs else _PLAIN
    forms = {
        "dataframe_split": split,
        "dataframe_records": records,
        "instances": either,
        "inputs": either,
    }
    return {
        "type": "object",
        "properties": {**forms, "params": {"type": ["object", "null"]}},
        "oneOf": [{"required": [name]} for name in forms],
        "additionalProperties": False,
    }


def _tensors(words: dict[str, Any]) -> dict[str, Any]:
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "datatype": {"type": "string"},
            "data": {"type": "array"},
            "parameters": {"type": "object"},
        },
    }
    return {"type": "object", "properties": {"id": {"type": "string"}, **words}, "tensor": tensor}


def _infer() -> dict[str, Any]:
    shape = _tensors({})
    tensors = {"type": "array", "minItems": 1, "items": shape.pop("tensor")}
    shape["properties"] |= {
        "inputs": tensors,
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "parameters": {"type": "object"},
    }
    return {**shape, "required": ["inputs"]}


def _inferred() -> dict[str, Any]:
    shape = _tensors({"model_name": {"type": "string"}, "model_version": {"type": "string"}})
    shape["properties"]["outputs"] = {"type": "array", "items": shape.pop("tensor")}
    return shape
