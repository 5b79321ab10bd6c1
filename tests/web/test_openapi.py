"""The OpenAPI document: what it promises is what happens, and a change of it is seen.

Schemathesis reads the document and sends what it allows, and what it does not allow, to the application in
this process. Every answer must be described, no answer may be a fault of ours, and what the document forbids
must be refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from modelkeep.web import openapi
from modelkeep.web.app import OPERATIONS, create_app
from tests.web.processes import serving
from tests.web.world import fill, opened, rehearsing

pytestmark = pytest.mark.req("U4")

DOCUMENT = json.loads(json.dumps(openapi.build(OPERATIONS)))


def test_the_operations_are_these(golden: Callable[[str, str], None]) -> None:
    """The list of all operations, as a person would read it: a change of the API is a change of this file."""
    lines = []
    for row in OPERATIONS:
        query = ", ".join(row.query.__struct_fields__)
        lines.append(
            f"{row.method:6} {row.path}{f'  ?{query}' if query else ''}\n       {row.name}: {row.summary}\n"
        )
    golden("http_operations.txt", "".join(lines))


def test_the_document_is_whole() -> None:
    """Every reference leads somewhere, every id stands once, every shape is a JSON Schema."""
    text = json.dumps(DOCUMENT)
    for name in {part.split('"')[0] for part in text.split('"#/components/schemas/')[1:]}:
        assert name in DOCUMENT["components"]["schemas"], name
    ids = [operation["operationId"] for path in DOCUMENT["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) == len(OPERATIONS)
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


CONFIG = """
[generation]
max-examples = {examples}
database = "none"
deterministic = true
# References, filters and reasons have grammars that JSON Schema cannot say: such a text may be refused.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "415", "422"]
# What is far too long is refused for that, before anybody reads it.
[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "431"]
"""


def findings(schema: Any) -> tuple[int, list[str]]:
    """How many requests were made of a schema, and what was found, each with the request that shows it."""
    made, found = 0, []
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished(recorder=recorder):
                made += len(recorder.cases)
                for name, checks in recorder.checks.items():
                    case = recorder.cases[name].value
                    found += [
                        f"{recorder.label}: {check.failure_info.failure.title}: "
                        f"{check.failure_info.failure.message[:300]}\n{case.as_curl_command()[:1_000]}"
                        for check in checks
                        if check.failure_info is not None
                    ]
            case events.NonFatalError() | events.FatalError():
                found.append(repr(event)[:1_000])
    return made, found


def test_what_the_document_says_is_so(tmp_path: Path) -> None:
    """No request that can be made from the document, or against it, gets an answer it does not describe."""
    with opened(tmp_path) as house:
        fill(house)
        app = create_app(rehearsing(house), hosts=("testserver",))
        config = SchemathesisConfig.from_str(CONFIG.format(examples=4))
        made, found = findings(schemathesis.openapi.from_asgi("/openapi.json", app, config=config))
        app.dispatcher.close()
    assert not found, "\n\n".join(found[:10])
    assert made > 40 * len(OPERATIONS)


@pytest.mark.long
@pytest.mark.network
def test_a_real_server_keeps_to_the_document(tmp_path: Path) -> None:
    """The same through uvicorn and sockets, with many more requests, whose writes stay."""
    with serving(tmp_path) as server:
        config = SchemathesisConfig.from_str(CONFIG.format(examples=20))
        made, found = findings(schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config))
    assert not found, "\n\n".join(found[:10])
    assert made > 40 * len(OPERATIONS)
