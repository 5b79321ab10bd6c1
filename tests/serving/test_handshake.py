"""Parent and child of a gateway: that they agree before they speak, and that the number they compare means
something."""

import hashlib
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from modelkeep import __version__
from modelkeep.serving import frames, handshake, messages, records
from modelkeep.serving.upstream import PREFIX

WIRE = {5: "5a3e8c44ada81e35"}
"""By protocol: what goes over the channels, in short."""

UNSAID = frozenset(
    {"description", "default", "minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "x-unit"}
)


def _named(kind: type) -> dict[str, Any]:
    """The schema of a type that travels as text."""
    return {"type": "string", "title": kind.__name__}


def _bare(schema: Any) -> Any:
    """A schema without its words, limits and defaults, which do not go over the wire."""
    if isinstance(schema, dict):
        return {key: _bare(value) for key, value in schema.items() if key not in UNSAID}
    return [_bare(value) for value in schema] if isinstance(schema, list | tuple) else schema


@pytest.mark.req("S1")
def test_whoever_changes_a_message_raises_the_protocol() -> None:
    """The messages, the frames and the prefix of a request are those of the protocol's number. When this
    fails: raise `handshake.PROTOCOL` and put the new digest beside the new number; where all that changed is
    a new field with a default, which either side may leave out, renew the digest of the number it has."""
    unions = (
        *(messages.ToFront, messages.FromFront, messages.ToWorker, messages.FromWorker),
        *(messages.ToRecorder, messages.FromRecorder, records.ToRecorder, records.Kept),
    )
    shapes = msgspec.json.schema_components(unions, schema_hook=_named)
    kinds = {kind.name: int(kind) for kind in frames.Kind}
    doors = {door.name: int(door) for door in messages.Door}
    structs = (frames.HEADER.format, PREFIX.format)
    said = msgspec.json.encode([_bare(shapes), kinds, doors, structs], order="deterministic")
    assert WIRE.get(handshake.PROTOCOL) == hashlib.sha256(said).hexdigest()[:16]


@pytest.mark.req("S1")
def test_a_child_of_another_release_says_so_and_ends() -> None:
    """Its exit code is its own, its words name both releases and the way on, and there is no trace."""
    command = [sys.executable, *handshake.words(handshake.WORKER), "1", "2"]
    command[4:6] = ["0", "0.0.9"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == handshake.OTHER_RELEASE
    assert ended.stderr == f"{handshake.objection('0', '0.0.9')}\n"
    for word in ("0.0.9", __version__, "Restart the gateway"):
        assert word in ended.stderr
    assert handshake.objection(str(handshake.PROTOCOL), "0.0.9") is None
