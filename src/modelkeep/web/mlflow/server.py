"""What the MLflow client asks of the server itself: its version, what it can do, and its workspaces, which
are our projects; and what its links lead to.
"""

from msgspec import Struct

from modelkeep.service import projects
from modelkeep.service.act import Act
from modelkeep.web.dispatch import Dispatcher
from modelkeep.web.mlflow import wire
from modelkeep.web.operations import Call

NO_PAGES = b"""\
This is Modelkeep. It has no web pages in this release.

The links that MLflow's client prints ("View run ... at ...") lead here. What they promise to show:

  a run                  mlflow.get_run("RUN_ID"), or mlflow.search_runs() for a table of all
  a model, its versions  modelkeep show MODEL
  what happened to it    modelkeep history MODEL
  everything             modelkeep ls

Programs find every operation at /openapi.json.
"""
"""What a browser is shown: MLflow's links differ only after the '#', which browsers keep to themselves."""


class Features(Struct, frozen=True, kw_only=True):
    """Parts of MLflow that are switched on or off; ours are off."""

    gateway: bool = False
    scheduled_issue_detection: bool = False


class ServerInfo(Struct, frozen=True, kw_only=True):
    """What this server can do, by which the client chooses its ways.

    Attributes:
        store_type: the kind of store behind it, as MLflow calls its own; it has no word for others.
        multipart_uploads_enabled, multipart_downloads_enabled: whether clients take those ways unasked. A
            part goes, with the caller's credential, to an address that the answer names; that a proxy which
            hides https from us could make it plain is not ours to risk, so people ask for it
            (MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD).
        artifacts_presigned_only: whether bytes go past the server; ours never do.
    """

    store_type: str | None = None
    workspaces_enabled: bool = True
    trace_archival_enabled: bool = False
    multipart_uploads_enabled: bool = False
    multipart_downloads_enabled: bool = False
    artifact_serving_enabled: bool = True
    presigned_upload_run_id_supported: bool = False
    presigned_upload_model_id_supported: bool = False
    model_artifact_presigned_downloads_supported: bool = False
    features_enabled: Features = Features()
    tracking_auth: str = ""
    artifacts_presigned_only: bool = False


class Workspace(Struct, frozen=True, kw_only=True):
    """A project as the client parses it."""

    name: str


class OneWorkspace(Struct, frozen=True):
    workspace: Workspace


class WorkspacesOut(Struct, frozen=True):
    workspaces: tuple[Workspace, ...]


async def first_page(call: Call, dispatcher: Dispatcher) -> None:
    """`GET /`: where the links of MLflow's client lead."""
    await call.answer.whole(200, NO_PAGES, content_type=b"text/plain; charset=utf-8")


async def version(call: Call, dispatcher: Dispatcher) -> None:
    """`GET /version`: the release of MLflow that this door speaks."""
    await call.answer.whole(200, wire.VERSION.encode(), content_type=b"text/plain; charset=utf-8")


def server_info(call: Call) -> ServerInfo:
    """`GET server-info`, which the client asks before it has a credential."""
    return ServerInfo()


def list_workspaces(act: Act, call: Call) -> WorkspacesOut:
    """`GET workspaces`."""
    return WorkspacesOut(tuple(Workspace(name=name) for name in projects.list_projects(act)))


def get_workspace(act: Act, call: Call) -> OneWorkspace:
    """`GET workspaces/NAME`."""
    return OneWorkspace(Workspace(name=projects.get_project(act, call.path["workspace"])))
