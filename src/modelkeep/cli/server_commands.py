"""Commands that run and look after Modelkeep itself: up, server, gateway, doctor, fsck, config, migrate,
completion.

The processes are `processes`'; the checks of the doctor are `doctor`'s.
"""

import sys
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli import server_views as views
from modelkeep.cli.session import DefaultGroup, Session, reason, verb

if TYPE_CHECKING:
    from modelkeep.cli.processes import Ready
    from modelkeep.settings import Settings

_DATA = click.option("--data", metavar="DIR", help="Where everything is kept [MODELKEEP_DATA].")
_HOST = click.option("--host", metavar="ADDRESS", help="The address to listen on [MODELKEEP_HOST].")
_AUTH = click.option(
    "--auth", type=click.Choice(["local", "token"]), help="Whom to believe [MODELKEEP_AUTH]."
)
_NAMES = click.option(
    "--host-name", "host_names", multiple=True, metavar="NAME", help="Answer to this name as well."
)
_PORT = click.option("--port", type=int, metavar="N", help="The server's port; 0 for any [MODELKEEP_PORT].")
_CALLERS = (
    click.option(
        "--callers-token", "gateway_callers_token_file", metavar="FILE",
        help="Tokens, one a line; callers of the gateway show one [MODELKEEP_GATEWAY_CALLERS_TOKEN_FILE].",
    ),
    click.option(
        "--open", "gateway_open", is_flag=True, default=None,
        help="Let anybody ask the gateway who reaches it [MODELKEEP_GATEWAY_OPEN].",
    ),
    click.option(
        "--cors-origin", "gateway_cors_origins", multiple=True, metavar="ORIGIN",
        help="Let pages of this origin ask the gateway [MODELKEEP_GATEWAY_CORS_ORIGINS].",
    ),
)  # fmt: skip
_MODELS = (
    click.option(
        "--allow-code", "gateway_allow_code", is_flag=True, default=None,
        help="Run Python code that versions bring with them [MODELKEEP_GATEWAY_ALLOW_CODE].",
    ),
    click.option(
        "--environments", "gateway_environments", type=click.Choice(["off", "locked"]),
        help="Run versions with the packages they list [MODELKEEP_GATEWAY_ENVIRONMENTS].",
    ),
    click.option(
        "--memory-budget", "gateway_memory_budget", metavar="SIZE",
        help="For all versions together, like 2GiB [MODELKEEP_GATEWAY_MEMORY_BUDGET].",
    ),
    click.option(
        "--worker-memory", "gateway_worker_memory", metavar="SIZE",
        help="The most that one process of a version may map, like 4GiB [MODELKEEP_GATEWAY_WORKER_MEMORY].",
    ),
    click.option(
        "--device", "gateway_device", metavar="DEVICE",
        help="What versions compute on: auto, cpu, cuda, cuda:0,2 [MODELKEEP_GATEWAY_DEVICE].",
    ),
    click.option(
        "--idle-timeout", "gateway_idle_timeout_s", type=float, metavar="S",
        help="Seconds until a version loaded on demand sleeps [MODELKEEP_GATEWAY_IDLE_TIMEOUT_S].",
    ),
)  # fmt: skip


def _models(command: Any) -> Any:
    """Give a command all options of how models are run: a list of them by hand would lose the last."""
    for option in reversed(_MODELS):
        command = option(command)
    return command


_LEVEL = click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    envvar="MODELKEEP_LOG_LEVEL",
    help="What to log [MODELKEEP_LOG_LEVEL].",
)
_PARENT = click.option("--parent", "channel", type=int, hidden=True)
_SECRET = "Shown once, keep it: the token of 'admin' is"


def _settings(session: Session, **flags: Any) -> "Settings":
    session.flags.update((name, value) for name, value in flags.items() if value != ())
    return session.settings


def _ready(channel: int | None, data: object, what: str) -> "Any":
    """What is done when a process can be used: its parent is told, or a line is printed."""
    from modelkeep.cli.processes import bind_to_parent

    if channel is not None:
        return bind_to_parent(channel)

    def say(ready: "Ready") -> None:
        click.echo(f"{what} {ready.url}, data {data}")
        if ready.admin_token is not None:
            click.echo(f"{_SECRET}\n{ready.admin_token}")

    return say


@verb()
@_DATA
@_HOST
@_PORT
@click.option("--gateway-port", type=int, metavar="N", help="The gateway's port [MODELKEEP_GATEWAY_PORT].")
@click.option("--gateway-host", metavar="ADDRESS", help="The gateway's address [MODELKEEP_GATEWAY_HOST].")
@_CALLERS[0]
@_CALLERS[1]
@_CALLERS[2]
@_models
@_AUTH
@_NAMES
@_LEVEL
def up(session: Session, host_names: tuple[str, ...], log_level: str | None, **flags: Any) -> int:
    """Run server and gateway together on this machine, until Ctrl-C."""
    from modelkeep.cli.processes import GATEWAY_STOP_S, STOP_S, Child, Ready, keep_running

    level = (log_level or "WARNING").upper()  # on a person's terminal; each process alone logs more
    settings = _settings(session, host_names=host_names or None, log_level=level, **flags)

    def server_words(former: str | None) -> list[str]:
        port = str(settings.port) if former is None else former.rpartition(":")[2]
        names = [word for name in settings.host_names for word in ("--host-name", name)]
        return [
            "server", "--data", settings.data, "--host", settings.host, "--port", port,
            "--auth", settings.auth, "--log-level", level, *names,
        ]  # fmt: skip

    tokens = settings.gateway_callers_token_file
    callers = ["--callers-token", tokens] if tokens else ["--open"] if settings.gateway_open else []
    callers += [word for origin in settings.gateway_cors_origins for word in ("--cors-origin", origin)]
    models = ["--environments", settings.gateway_environments]
    models += ["--allow-code"] if settings.gateway_allow_code else []
    models += ["--memory-budget", settings.gateway_memory_budget]
    models += ["--worker-memory", settings.gateway_worker_memory]
    models += ["--device", settings.gateway_device]
    models += ["--idle-timeout", f"{settings.gateway_idle_timeout_s:g}"]

    def gateway_words(former: str | None) -> list[str]:
        port = str(settings.gateway_port) if former is None else former.rpartition(":")[2]
        assert keeper.ready is not None  # it is started first
        return [
            "gateway", "run", "--data", str(settings.gateway_folder), "--host", settings.gateway_host,
            "--port", port, "--server", keeper.ready.url, "--log-level", level, *callers, *models,
        ]  # fmt: skip

    def on_ready(registry: Ready, gateway: Ready) -> None:
        places = {"registry": registry.url, "gateway": gateway.url, "data": settings.data}
        if registry.admin_token is not None:
            places["admin_token"] = registry.admin_token
        session.answer(places, [registry.url, gateway.url], views.up(places))
        sys.stdout.flush()

    keeper = Child("server", server_words, stop_s=STOP_S + 1)
    front = Child("gateway", gateway_words, stop_s=GATEWAY_STOP_S)
    return keep_running(keeper, front, on_ready, session.say)


@click.group(cls=DefaultGroup, default="run")
def server() -> None:
    """Run the control plane alone."""


@verb(server, "run")
@_DATA
@_HOST
@_PORT
@_AUTH
@_NAMES
@_LEVEL
@_PARENT
def server_run(
    session: Session, host_names: tuple[str, ...], channel: int | None, log_level: str | None, **flags: Any
) -> None:
    """Run it until Ctrl-C (the word may be left out). It logs to stderr in JSON."""
    from modelkeep import telemetry
    from modelkeep.cli.processes import address_of, listen
    from modelkeep.core import errors

    level = log_level.upper() if log_level else None
    settings = _settings(session, host_names=host_names or None, log_level=level, **flags)
    on_ready = _ready(channel, settings.data, "The server is at")
    telemetry.configure(level=settings.log_level)
    with listen(settings.host, settings.port) as listener:
        try:
            from modelkeep.cli.server_process import serve
        except ModuleNotFoundError as problem:
            what = f"The server needs its own libraries ({problem.name}); install modelkeep[server]."
            raise errors.ExtraMissing(what) from problem
        serve(settings, listener, address_of(listener), on_ready)


@verb(server, "migrate")
@_DATA
def server_migrate(session: Session, data: str | None) -> None:
    """Bring the database's schema to this release; for Postgres this is a step of its own."""
    from modelkeep.core import errors

    settings = _settings(session, data=data)
    try:
        from modelkeep.store.migrate import migrate
    except ImportError as problem:
        raise errors.ExtraMissing(
            "The server needs its own libraries; install modelkeep[server]."
        ) from problem
    before, after = migrate(settings.database_url)
    session.answer({"before": before, "after": after}, [after], views.migrated(before, after))


@click.group(cls=DefaultGroup, default="run")
def gateway() -> None:
    """Run the data plane alone, or command one that runs on this machine."""


@verb(gateway, "run")
@click.option("--data", metavar="DIR", help="The gateway's own folder [MODELKEEP_GATEWAY_DATA].")
@click.option(
    "--host", "gateway_host", metavar="ADDRESS", help="The address to listen on [MODELKEEP_GATEWAY_HOST]."
)
@click.option(
    "--port", "gateway_port", type=int, metavar="N", help="The port; 0 for any [MODELKEEP_GATEWAY_PORT]."
)
@click.option("--server", "server_url", metavar="URL", help="The server to obey [MODELKEEP_URL].")
@click.option("--token-file", metavar="FILE", help="The token to show it; DIR/token when that is there.")
@_CALLERS[0]
@_CALLERS[1]
@_CALLERS[2]
@_models
@click.option("--fronts", "gateway_fronts", type=int, metavar="N", help="Processes that take requests.")
@click.option("--name", metavar="NAME", help="What the server calls this gateway.")
@click.option("--address", metavar="URL", help="Where callers reach it, when that is not host and port.")
@_LEVEL
@_PARENT
def gateway_run(
    session: Session,
    data: str | None,
    server_url: str | None,
    token_file: str | None,
    name: str | None,
    address: str | None,
    channel: int | None,
    log_level: str | None,
    **flags: Any,
) -> None:
    """Run it until Ctrl-C (the word may be left out). It logs to stderr in JSON."""
    from pathlib import Path

    from modelkeep import telemetry
    from modelkeep.cli.processes import Ready, gateway_folder
    from modelkeep.serving.devices import VARIABLES
    from modelkeep.serving.main import run_gateway
    from modelkeep.serving.options import GatewayOptions
    from modelkeep.settings import said

    settings = _settings(session, log_level=log_level.upper() if log_level else None, **flags)
    folder = gateway_folder(settings, data)
    telemetry.configure(level=settings.log_level)
    told = _ready(channel, folder, "The gateway is at")
    options = GatewayOptions(
        data=folder,
        host=settings.gateway_host,
        port=settings.gateway_port,
        server=server_url or settings.url,
        token_file=Path(token_file) if token_file else None,
        callers_token_file=Path(tokens) if (tokens := settings.gateway_callers_token_file) else None,
        open=settings.gateway_open,
        cors_origins=settings.gateway_cors_origins,
        allow_code=settings.gateway_allow_code,
        environments=settings.gateway_environments,
        memory_budget_bytes=settings.gateway_memory_budget_bytes,
        worker_memory_bytes=settings.gateway_worker_memory_bytes,
        device=settings.gateway_device,
        gpu_environment=said(VARIABLES),
        sleep_after_s=settings.gateway_idle_timeout_s,
        name=name,
        url=address,
        fronts=settings.gateway_fronts,
        log_level=settings.log_level,
    )
    run_gateway(options, on_start=lambda url: told(Ready(url=url)))


@verb(gateway, "rollback")
@click.argument("endpoint")
@reason
@click.option("--data", metavar="DIR", help="The data folder of the gateway [MODELKEEP_GATEWAY_DATA].")
def gateway_rollback(session: Session, endpoint: str, reason: str, data: str | None) -> None:
    """Take ENDPOINT back at the gateway on this machine, also with the server stopped."""
    from modelkeep.cli.processes import gateway_folder
    from modelkeep.serving.control import call

    settings = session.settings
    done = call(
        gateway_folder(settings, data), "rollback", endpoint=endpoint, actor=settings.user, reason=reason
    )
    session.answer(done, [str(done.get("version", ""))], views.gateway_rollback(done))


@verb(gateway, "status")
@click.option("--data", metavar="DIR", help="The data folder of the gateway [MODELKEEP_GATEWAY_DATA].")
def gateway_status(session: Session, data: str | None) -> None:
    """Show what the gateway on this machine serves, also with the server stopped."""
    from modelkeep.cli.processes import gateway_folder
    from modelkeep.serving.control import call

    found = call(gateway_folder(session.settings, data), "status")
    session.answer(found, (str(r["endpoint"]) for r in found["routes"]), views.gateway_status(found))


# ------------------------------------------------------------------------------------------------------------
# ---- care


@verb()
def doctor(session: Session) -> int:
    """Check server, versions, gateways, clock and disk; say of each what to do."""
    from modelkeep.cli.doctor import examine

    checks = examine(session.client, session.settings)
    session.answer(checks, (c.name for c in checks if not c.ok), views.checks(checks))
    return 0 if all(check.ok for check in checks) else 1


@verb()
def fsck(session: Session) -> int:
    """Have the server hash everything again, hold every table against the audit log, and look for what
    dangles."""
    report = session.client.fsck()
    found = [v for p in report.problems for v in p.versions] + [a.where for a in report.altered]
    session.answer(report, found, views.fsck(report))
    return 0 if report.ok else 1


@click.group()
def config() -> None:
    """Show the settings."""


@verb(config, "show")
def config_show(session: Session) -> None:
    """Show every setting as it holds here; secrets are not printed."""
    from modelkeep.settings import shown

    found = shown(session.settings)
    session.answer(found, (f"{name}={value}" for name, value in found.items()), views.settings(found))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(modelkeep completion bash)"."""
    from click.shell_completion import get_completion_class

    from modelkeep.cli.main import modelkeep

    made = get_completion_class(shell)
    assert made is not None  # the choice above names only shells that click knows
    click.echo(made(modelkeep, {}, "modelkeep", "_MODELKEEP_COMPLETE").source())
