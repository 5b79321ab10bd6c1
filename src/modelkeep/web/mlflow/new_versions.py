"""Making a version of a model from what a run or another version holds, in MLflow's words.

Where the files are, and what of the run becomes the version's, is `service.sources`.
"""

from modelkeep.core import values
from modelkeep.core.catalog import OWN_TAGS
from modelkeep.service import mlflow_registry as words
from modelkeep.service.act import Act
from modelkeep.service.sources import PreparedVersion, VersionRequest
from modelkeep.web.mlflow import registry_shapes as shapes
from modelkeep.web.mlflow.registry import model_of, required, tags_of
from modelkeep.web.mlflow.registry_shapes import OneVersion, version_out
from modelkeep.web.operations import Call


def _request(call: Call) -> VersionRequest:
    asked: shapes.CreateVersion = call.body
    given = asked.tags or ()
    if asked.source.lower().startswith("models:"):
        # A copy is asked for with everything that the version shows; what is ours will be its own.
        given = tuple(tag for tag in given if not tag.key.startswith(OWN_TAGS))
    tags = tags_of(given)
    if asked.run_link:
        tags[words.RUN_LINK] = values.check_text(asked.run_link, "run_link", maximum=values.REFERENCE_MAX)
    host = call.headers.get(b"host")
    return VersionRequest(
        model=model_of(call, asked.name),
        source=required(asked.source, "source"),
        run_id=asked.run_id or None,
        model_id=asked.model_id or None,
        description=asked.description or "",
        tags=tags,
        host=host.decode("latin-1") if host is not None else None,
    )


def prepare(call: Call) -> PreparedVersion:
    """Find what a version is to be made of, before any transaction."""
    return call.house.sources.prepare(call.house.desk, call.context, _request(call))


def create(act: Act, call: Call) -> OneVersion:
    """`model-versions/create`."""
    sources = call.house.sources
    if call.prepared is None:
        made = sources.register_at_hand(act, _request(call))
    else:
        made = sources.register(act, call.prepared)
    return OneVersion(version_out(words.just_made(made.version).line))
