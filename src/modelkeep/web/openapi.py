"""What the server says about itself: the OpenAPI 3.1 document, made from the route table, and its metrics.

The document is made from the same rows and shapes that run the requests, so it cannot promise what is not
there.
"""

from typing import Any

import msgspec

from modelkeep import __version__
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.operations import Call, Door, Mode, NoQuery, Operation
from modelkeep.web.requests import TOKEN_PATTERN
from modelkeep.web.shapes import NAME_PATTERN

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened and what to do next."},
        "code": {"type": "string", "description": "Stable; what programs compare."},
        "details": {"type": "object"},
        "request_id": {"type": ["string", "null"]},
    },
}
_ID = r"^[A-Za-z0-9_]{1,64}$"
_PARAMETERS = {
    "project": ("The project; `default` unless the model's name says another.", NAME_PATTERN),
    "model": ("The model's name within its project.", NAME_PATTERN),
    "alias": ("The alias.", NAME_PATTERN),
    "name": ("The name.", NAME_PATTERN),
    "id": ("The id.", _ID),
    "digest": ("A whole digest, `sha256:` and 64 hexadecimal digits.", r"^sha256:[0-9a-f]{64}$"),
}
_KEY: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key with the same request gives the same answer for 24 hours.",
    "schema": {"type": "string", "pattern": TOKEN_PATTERN},
}


def build(operations: tuple[Operation, ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a route table: of what speaks our own language there."""
    operations = tuple(row for row in operations if row.door is Door.API)
    shapes = {kind for row in operations for kind in (row.body, row.answer) if kind not in (None, bytes)}
    queries = {row.query for row in operations if row.query is not NoQuery}
    _, components = msgspec.json.schema_components(
        [*shapes, *queries], ref_template="#/components/schemas/{name}"
    )
    names = dict(zip([*shapes, *queries], _, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, names, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Modelkeep",
            "version": __version__,
            "description": "A model registry and deployment platform.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {**components, "Problem": _PROBLEM},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(row: Operation, names: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": row.name,
        "summary": row.summary,
        "parameters": [
            *_path_parameters(row),
            *_query_parameters(row, components),
            *([_KEY] if row.mode is Mode.WRITE else []),
        ],
        "responses": {
            str(row.status): _answer(row, names),
            "default": {
                "description": "What went wrong.",
                "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
            },
        },
    }
    if row.name == "gateway_table":
        described["responses"]["204"] = {"description": "Nothing newer."}
    if row.body is not None:
        described["requestBody"] = _body(row, names)
    elif row.name == "upload_file":
        described["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    if row.open:
        described["security"] = []
    return described


def _body(row: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    if row.raw and row.before is None:  # nobody reads it
        return {"required": False, "content": {"*/*": {}}}
    kind = "application/yaml" if row.raw else "application/json"
    schema = {"type": "string"} if row.raw else names[row.body]
    return {"required": True, "content": {kind: {"schema": schema}}}


def _answer(row: Operation, names: dict[Any, Any]) -> dict[str, Any]:
    if row.answer is bytes:
        return {"description": row.summary, "content": {"*/*": {}}}
    return {"description": row.summary, "content": {"application/json": {"schema": names[row.answer]}}}


def _path_parameters(row: Operation) -> list[dict[str, Any]]:
    found = [part[1:-1] for part in row.path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PARAMETERS[name][0],
            "schema": {"type": "string", "pattern": _PARAMETERS[name][1]},
        }
        for name in found
    ]


def _query_parameters(row: Operation, components: dict[str, Any]) -> list[dict[str, Any]]:
    if row.query is NoQuery:
        return []
    schema = components[row.query.__name__]
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "schema": {key: value for key, value in described.items() if key != "description"},
            **({"description": described["description"]} if "description" in described else {}),
        }
        for name, described in schema["properties"].items()
    ]


async def document(call: Call, dispatcher: Dispatcher) -> None:
    """Serve the document; it is made once."""
    await call.answer.whole(200, dispatcher.openapi)


async def metrics(call: Call, dispatcher: Dispatcher) -> None:
    """Prometheus' text format: requests by operation and status, their duration, and the process itself."""
    text = dispatcher.figures.exposition()
    await call.answer.whole(200, text, content_type=b"text/plain; version=0.0.4; charset=utf-8")
