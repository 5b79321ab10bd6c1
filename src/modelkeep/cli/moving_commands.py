"""Commands that move a whole registry: in from MLflow, and out to it."""

import click

from modelkeep.cli import moving_views as views
from modelkeep.cli.session import Session, pairs, verb
from modelkeep.cli.show import Counts

_TOKEN = click.option("--mlflow-token", envvar="MLFLOW_TRACKING_TOKEN", metavar="TOKEN",
                      help="Token for MLflow [MLFLOW_TRACKING_TOKEN].")  # fmt: skip
_USER = click.option("--mlflow-user", envvar="MLFLOW_TRACKING_USERNAME", metavar="NAME",
                     help="User for MLflow [MLFLOW_TRACKING_USERNAME].")  # fmt: skip
_PASSWORD = click.option("--mlflow-password", envvar="MLFLOW_TRACKING_PASSWORD", metavar="WORD",
                         help="Password for MLflow [MLFLOW_TRACKING_PASSWORD].")  # fmt: skip
_WORKSPACE = click.option("--workspace", metavar="NAME", help="The workspace of MLflow, where it has them.")
_PROJECT = click.option("--project", default="default", show_default=True, metavar="NAME",
                        help="The project here.")  # fmt: skip
_DRY = click.option("--dry-run", is_flag=True, help="Read and check everything, and write nothing.")


@click.group("import")
def imports() -> None:
    """Move another registry in."""


@verb(imports, "mlflow")
@click.argument("source")
@_PROJECT
@click.option("--artifacts", metavar="DIR", help="The folder behind MLflow's mlflow-artifacts: addresses.")
@click.option("--rename", multiple=True, metavar="OLD=NEW",
              help="Call an experiment or registered model otherwise here.")  # fmt: skip
@_WORKSPACE
@_TOKEN
@_USER
@_PASSWORD
@click.option("--s3-endpoint", envvar="MLFLOW_S3_ENDPOINT_URL", metavar="URL",
              help="Where s3:// is, when it is not AWS [MLFLOW_S3_ENDPOINT_URL].")  # fmt: skip
@_DRY
def import_mlflow(
    session: Session,
    source: str,
    project: str,
    artifacts: str | None,
    rename: tuple[str, ...],
    workspace: str | None,
    mlflow_token: str | None,
    mlflow_user: str | None,
    mlflow_password: str | None,
    s3_endpoint: str | None,
    dry_run: bool,
) -> int:
    """Move everything in from SOURCE: the address of an MLflow server, a SQLite file, or a Postgres address.

    Experiments, runs with their histories and files, registered models and versions keep their ids, numbers,
    times and users. Broken off, the same again goes on; run once more, it compares. Only an admin may.
    """
    from pathlib import Path

    from modelkeep.adapters.mlflow_sources import open_source
    from modelkeep.client.moving_models import Mover

    opened = open_source(
        source,
        artifacts=Path(artifacts) if artifacts else None,
        s3_endpoint=s3_endpoint,
        token=mlflow_token,
        user=mlflow_user,
        password=mlflow_password,
        workspace=workspace,
    )
    try:
        with Counts(shown=False if session.quiet else None) as counts:
            mover = Mover(
                opened,
                session.client,
                project=project,
                rename=pairs(rename, "rename", at_last=True),
                dry_run=dry_run,
                progress=counts,
            )
            report = mover.run()
    finally:
        opened.close()
    session.answer(report, (left.id for left in report.left_out), views.moved_in(report))
    return 0 if report.whole else 1


@click.group("export")
def exports() -> None:
    """Move everything out to another registry."""


@verb(exports, "mlflow")
@click.argument("target")
@_PROJECT
@_WORKSPACE
@_TOKEN
@_USER
@_PASSWORD
def export_mlflow(
    session: Session,
    target: str,
    project: str,
    workspace: str | None,
    mlflow_token: str | None,
    mlflow_user: str | None,
    mlflow_password: str | None,
) -> int:
    """Write a project out to TARGET, the address of a running MLflow server.

    Experiments, runs with histories and files, logged and registered models, versions with stages and
    aliases; each bears the tag modelkeep.source_id. Broken off, the same again goes on.
    """
    from modelkeep.adapters.mlflow_export import Exporter
    from modelkeep.adapters.mlflow_rest import MlflowServer

    settings = session.settings
    source = MlflowServer(settings.url, token=settings.token, workspace=project)
    try:
        with Counts(shown=False if session.quiet else None) as counts:
            exporter = Exporter(
                source,
                target,
                project=project,
                token=mlflow_token,
                user=mlflow_user,
                password=mlflow_password,
                workspace=workspace,
                progress=counts,
            )
            try:
                report = exporter.run()
            finally:
                exporter.close()
    finally:
        source.close()
    session.answer(report, (left.id for left in report.left_out), views.moved_out(report))
    return 0 if report.whole else 1
