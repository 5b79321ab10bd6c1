"""Which adapter reads an MLflow registry: a server's for an HTTP address, a database's for all else.

It chooses, and reads nothing.
"""

from pathlib import Path
from urllib.parse import urlsplit

from modelkeep.adapters.mlflow_roots import Roots
from modelkeep.client.mlflow_source import MlflowSource


def open_source(
    address: str,
    *,
    artifacts: Path | None = None,
    s3_endpoint: str | None = None,
    token: str | None = None,
    user: str | None = None,
    password: str | None = None,
    workspace: str | None = None,
) -> MlflowSource:
    """Open a registry for reading. Arguments as in the two adapters and in `Roots`.

    Raises:
        SourceUnreadable: there is none, or it cannot be read. InvalidSetting: that is no address.
        ExtraMissing: a library for it is not installed.
    """
    if urlsplit(address).scheme in ("http", "https"):
        from modelkeep.adapters.mlflow_rest import MlflowServer

        roots = Roots(local=False, s3_endpoint=s3_endpoint)
        return MlflowServer(address, roots, token=token, user=user, password=password, workspace=workspace)
    from modelkeep.adapters.mlflow_database import MlflowDatabase

    return MlflowDatabase(
        address, Roots(artifacts, s3_endpoint=s3_endpoint), workspace=workspace or "default"
    )
