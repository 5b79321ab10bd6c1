"""Parts of MLflow that this server does not have: each of their addresses answers at once, in one sentence.

The answer is MLflow's NOT_IMPLEMENTED with status 501, which its client neither retries nor takes for an
older server (as it would ENDPOINT_NOT_FOUND, and then try yet another address). Tracing is the part that
touches people who never asked for it: autologging of some libraries sends traces in the background, and the
client then logs one warning and goes on.
"""

from modelkeep.core import errors
from modelkeep.web.operations import Call

TRACES = "Traces are not kept by this server; runs, metrics, artifacts and models are."
LABELS = "Labelling is no part of this server; promotions are reviewed with 'modelkeep request'."
WORKSPACES = (
    "A project comes into being with the first experiment or model in it and needs no creating; "
    "who may use it says 'modelkeep grant'."
)
LANGUAGE_MODELS = "A gateway to language models is no part of this server; 'modelkeep gateway' serves models."

PARTS: dict[str, str] = {
    "traces": TRACES,
    "unified-traces": TRACES,
    "get-online-trace-details": TRACES,
    "get-trace-artifact": TRACES,
    "issues": TRACES,
    "workspaces": WORKSPACES,
    "datasets": "Evaluation datasets are not kept by this server; log data to runs with mlflow.log_input.",
    "scorers": "Scorers are not kept by this server; keep them in code.",
    "scorer": "Scorers are not run by this server; mlflow.evaluate runs where it is called.",
    "genai": "Evaluations are not run by this server; mlflow.evaluate runs where it is called.",
    "label-schemas": LABELS,
    "review-queues": LABELS,
    "gateway": LANGUAGE_MODELS,
    "gateway-proxy": LANGUAGE_MODELS,
    "prompt-optimization": "Prompts are not optimized by this server.",
    "demo": "There is no demo to generate here; 'make demo' shows Modelkeep.",
    "jobs": "This server runs no jobs of MLflow's.",
    "mcp-servers": "MCP servers are not kept by this server.",
    "skills": "Skills are not kept by this server.",
    "assistant": "MLflow's assistant is no part of this server.",
    "ui-telemetry": "This server sends no telemetry to anybody.",
}
"""What stands behind `mlflow/` in an address, and what to say of it."""


def absent(call: Call) -> None:
    """An address of a part of MLflow that is not here.

    Raises:
        NotProvided: always, unless MLflow has no such part.
        RouteNotFound: it has none.
    """
    part = call.path["path"].partition("/")[0]
    if part not in PARTS:
        raise errors.RouteNotFound("There is no such operation of MLflow here; see docs/reference/mlflow.md.")
    raise errors.NotProvided(PARTS[part], part=part)


def no_workspaces(call: Call) -> None:
    """Creating, changing and deleting workspaces.

    Raises:
        NotProvided: always.
    """
    raise errors.NotProvided(PARTS["workspaces"], part="workspaces")


def no_spans(call: Call) -> None:
    """`POST /v1/traces`, where the client sends spans by OpenTelemetry's protocol.

    Raises:
        NotProvided: always.
    """
    raise errors.NotProvided(TRACES, part="traces")


def no_graphql(call: Call) -> None:
    """`/graphql`, which MLflow's own pages ask.

    Raises:
        NotProvided: always.
    """
    raise errors.NotProvided(
        "MLflow's pages are no part of this server, nor is what they ask.", part="graphql"
    )
