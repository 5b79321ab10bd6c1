"""Commands of traffic: endpoints, rollouts watched and steered, and predictions asked of a gateway.

Taking an endpoint back at a gateway itself, which works with the server stopped, is `modelkeep gateway
rollback`.
"""

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli import endpoint_views, forecast_views
from modelkeep.cli import rollout_views as views
from modelkeep.cli.plans import plan_options, stated
from modelkeep.cli.session import Session, limit, read_text, reason, verb, yes

if TYPE_CHECKING:
    from modelkeep.core.answers import RolloutStatus
    from modelkeep.core.recording import Privacy
    from modelkeep.core.routing import Loading

ARRIVED = ("succeeded", "concluded")
"""States of a rollout that ended as it was meant to: the candidate took over, or a test has its report."""
WATCH_S = 0.5
"""Between two looks while watching."""
AWAY_MAX_S = 60.0
"""A server that does not answer for so long ends the watching."""
EITHER = "ENDPOINT|ROLLOUT"
"""Every word about a rollout takes the endpoint, which means its current or last one, or the rollout's id."""


# -----------------------------------------------------------------------------------------------------------
# endpoints


@click.group()
def endpoint() -> None:
    """Create, list and remove endpoints."""


@verb(endpoint, "create")
@click.argument("name")
@click.option("--model", required=True, metavar="MODEL", help="The model it serves.")
@click.option(
    "--follows",
    default="production",
    show_default=True,
    metavar="STAGE|@ALIAS",
    help="The stage it follows, or an alias, such as @champion.",
)
@click.option(
    "--key-header", metavar="HEADER", help="The header with the caller's key; else the connection's address."
)
@click.option("--key-cookie", metavar="NAME", help="The cookie with it, where the header is not there.")
@click.option("--key-field", metavar="POINTER", help="Its place in the body, such as /customer/id.")
@click.option("--slow-ms", type=float, metavar="MS", help="Answers slower than this count as slow.")
@click.option(
    "--lease-s", type=float, metavar="S", help="Take the candidate back when the server is silent so long."
)
@click.option(
    "--workers", type=int, metavar="N", help="Processes of each version on a gateway; 1 unless told."
)
@click.option(
    "--load",
    type=click.Choice(["always", "on_demand"]),
    help="When gateways load its versions; always unless told.",
)
@click.option(
    "--schema",
    type=click.Choice(["strict", "lenient"]),
    help="Refuse what misses the signature, or make it fit where that is plain.",
)
@click.option("--log", metavar="SHARE", help="Log this share of the answers at the gateway, such as 10%.")
@click.option(
    "--log-field",
    "fields",
    multiple=True,
    metavar="NAME=HOW",
    help="What becomes of a field in the log: keep, hash or drop.",
)
@click.option(
    "--log-others", "others", metavar="HOW", help="What becomes of the other fields; keep unless told."
)
@plan_options
def endpoint_create(
    session: Session,
    name: str,
    model: str,
    follows: str,
    key_header: str | None,
    key_cookie: str | None,
    key_field: str | None,
    slow_ms: float | None,
    lease_s: float | None,
    workers: int | None,
    load: str | None,
    schema: str | None,
    log: str | None,
    fields: tuple[str, ...],
    others: str | None,
    plan_file: str | None,
    strategy: str | None,
    steps: tuple[str, ...],
) -> None:
    """Create an endpoint that follows a stage or an alias, or change its settings."""
    from modelkeep.core.routing import Strictness

    made = session.client.put_endpoint(
        name,
        model,
        stage=None if follows.startswith("@") else follows,
        alias=follows[1:] if follows.startswith("@") else None,
        key_header=key_header,
        key_cookie=key_cookie,
        key_field=key_field,
        slow_ms=slow_ms,
        lease_s=lease_s,
        workers=workers,
        log_ppm=_log_share(log) if log is not None else None,
        privacy=_privacy(fields, others),
        load=_loading(load),
        schema=Strictness(schema) if schema is not None else None,
        plan=stated(plan_file, strategy, steps),
    )
    session.answer(made, [made.name], endpoint_views.endpoint(made))


def _log_share(text: str) -> int:
    """`10%` in ppm."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if not 0 <= percent <= 100:
        raise click.BadParameter(f"write a share such as 10%, not {text!r}", param_hint="--log")
    return round(percent * 10_000)


def _loading(word: str | None) -> "Loading | None":
    from modelkeep.core.routing import Loading

    return Loading(word) if word is not None else None


def _privacy(fields: tuple[str, ...], others: str | None) -> "Privacy | None":
    """The filter of the command line; None where it says nothing."""
    from modelkeep.cli.session import pairs
    from modelkeep.core.recording import Privacy, Treatment

    if not fields and others is None:
        return None
    named = pairs(fields, "log-field", at_last=True)
    for how in (*named.values(), others or "keep"):
        if how not in list(Treatment):
            raise click.BadParameter(
                f"a field is kept, hashed or dropped: {', '.join(Treatment)}, not {how!r}"
            )
    treated = {name: Treatment(how) for name, how in named.items()}
    return Privacy(fields=treated, others=Treatment(others or "keep"))


@verb(endpoint, "show")
@click.argument("name")
def endpoint_show(session: Session, name: str) -> None:
    """Show an endpoint and its plan."""
    found = session.client.rollout_status(name)
    session.answer(found.endpoint, [name], endpoint_views.endpoint_with_misses(found))


@verb(endpoint, "ls")
@limit
def endpoint_ls(session: Session, limit: int) -> None:
    """List endpoints."""
    found = session.client.list_endpoints(limit=limit).whole()
    session.answer(found, (e.name for e in found.items), endpoint_views.endpoints(found.items))
    if not found.items:
        session.say("No endpoint yet; make one with 'modelkeep endpoint create NAME --model MODEL'.")


@verb(endpoint, "rm")
@click.argument("name")
@yes
def endpoint_rm(session: Session, name: str, yes: bool) -> None:
    """Delete an endpoint; its model stays."""
    found = session.client.get_endpoint(name)
    session.confirm(f"the endpoint {found.name}, which serves {found.model},", found.name, yes)
    done = session.client.delete_endpoint(name)
    session.answer(done, [found.name], lambda screen: screen.line(f"Deleted {found.name}."))


# ------------------------------------------------------------------------------------------------------------
# rollouts


@click.group()
def rollout() -> None:
    """Watch and steer how traffic moves."""


@verb(rollout, "status")
@click.argument("endpoint", metavar=EITHER)
@click.option(
    "--watch",
    is_flag=True,
    help="Go on showing until it ends. Exit code: 0 succeeded or ended with its report, 3 anything else.",
)
def rollout_status(session: Session, endpoint: str, watch: bool) -> int:
    """Show how the traffic of an endpoint stands."""
    status = session.client.rollout_status(endpoint)
    if watch:
        return _watch(session, endpoint, status)
    session.answer(
        status, [status.rollout.id if status.rollout else status.endpoint.name], views.status(status)
    )
    return 0


def _watch(session: Session, endpoint: str, status: "RolloutStatus") -> int:
    """Show each change until there is no rollout any more: redrawn on a terminal, a line each in a pipe."""
    live = session.screen.width is not None and not session.json and not session.quiet
    drawn, last = 0, ""
    while True:
        if live:
            drawn = views.redraw(session.screen, views.status(status), drawn)
        elif (line := views.change(status)) != last and not session.quiet:
            last = line
            session.answer(status, (), views.one_line(line))
            sys.stdout.flush()
        if not status.active:
            break
        status = _next_status(session, endpoint)
    if session.quiet:
        session.screen.line(status.rollout.id if status.rollout else status.endpoint.name)
    return 0 if status.rollout is None or status.rollout.state.value in ARRIVED else 3


def _next_status(session: Session, endpoint: str) -> "RolloutStatus":
    """The status a moment later; a server that is away for a while is waited for."""
    from modelkeep.core import errors

    until = time.monotonic() + AWAY_MAX_S
    while True:
        time.sleep(WATCH_S)
        try:
            return session.client.rollout_status(endpoint)
        except (errors.ServerUnavailable, errors.TimedOut):
            if time.monotonic() > until:
                raise


@verb(rollout, "ls")
@click.argument("endpoint", required=False)
@click.option("--model", metavar="MODEL", help="Only rollouts of this model.")
@limit
def rollout_ls(session: Session, endpoint: str | None, model: str | None, limit: int) -> None:
    """List rollouts, newest first."""
    found = session.client.list_rollouts(endpoint=endpoint, model=model, limit=limit).whole()
    session.answer(found, (r.id for r in found.items), views.rollouts(found.items))
    if not found.items:
        session.say("No rollout yet.")


@verb(rollout, "explain")
@click.argument("endpoint", metavar=EITHER)
def rollout_explain(session: Session, endpoint: str) -> int:
    """Recompute the evidence of a rollout, an endpoint's last, from its stored counts, and compare it."""
    told = session.client.explain_rollout(endpoint)
    found = session.client.get_rollout(told.rollout)
    session.answer(told, [told.rollout], views.explanation(told, found))
    return 0 if told.equal else 1


@verb(rollout, "forecast")
@click.argument("ref", metavar="REF|PLAN", required=False)
@click.option(
    "--endpoint", metavar="ENDPOINT", help="Without a version: the traffic of this one, by PLAN or its own."
)
@click.option(
    "--to", default="production", show_default=True, metavar="STAGE", help="The stage it would enter."
)
@click.option(
    "--traffic", metavar="RATE", help="Requests, such as 50/s; what former rollouts counted when left out."
)
@click.option(
    "--requests-per-caller", type=float, metavar="N", help="Requests that one caller sends in a rollout."
)
@click.option("--error-rate", metavar="SHARE", help="Callers who have an error on stable, such as 0.5%.")
@plan_options
@click.option("--seed", type=int, metavar="N", help="Of the simulation; the same one repeats it.")
@click.option("--runs", type=int, metavar="N", help="Rollouts to simulate of each kind.")
def rollout_forecast(
    session: Session,
    ref: str | None,
    endpoint: str | None,
    to: str,
    traffic: str | None,
    requests_per_caller: float | None,
    error_rate: str | None,
    plan_file: str | None,
    strategy: str | None,
    steps: tuple[str, ...],
    seed: int | None,
    runs: int | None,
) -> None:
    """Say what moving traffic to REF may be expected to look like; change nothing.

    With --endpoint no version is needed: what is varied is how good a candidate is. PLAN is then a file.
    """
    if endpoint is None and ref is None:
        raise click.UsageError("name a version, or an endpoint with --endpoint")
    if endpoint is not None and ref is not None:
        if plan_file is not None:
            raise click.UsageError("name the plan once: as PLAN or by --plan")
        ref, plan_file = None, ref
    told = session.client.rollout_forecast(
        ref,
        endpoint=endpoint,
        to=to,
        traffic_per_s=_rate(traffic) if traffic is not None else None,
        requests_per_caller=requests_per_caller,
        error_rate=_share(error_rate) if error_rate is not None else None,
        plan=stated(plan_file, strategy, steps),
        seed=seed,
        runs=runs,
    )
    session.answer(told, [told.endpoint], forecast_views.forecast(told))


def _rate(text: str) -> float:
    """`50/s`, `3000/min` or `1e5/h`, per second; a bare number is per second."""
    number, _, unit = text.partition("/")
    try:
        return float(number) / {"": 1, "s": 1, "min": 60, "h": 3_600}[unit.strip()]
    except (ValueError, KeyError):
        raise click.BadParameter(
            f"write 50/s, 3000/min or 9000/h, not {text!r}", param_hint="--traffic"
        ) from None


def _share(text: str) -> float:
    """`0.5%` or `0.005`."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise click.BadParameter(f"write 0.5% or 0.005, not {text!r}", param_hint="--error-rate") from None


def _word(name: str, method: str, summary: str) -> None:
    def act(session: Session, endpoint: str, reason: str) -> None:
        found = getattr(session.client, method)(endpoint, reason)
        session.answer(found, [found.id], views.rollout(found))

    act.__doc__ = summary
    verb(rollout, name)(click.argument("endpoint", metavar=EITHER)(reason(act)))


_word("pause", "rollout_pause", "Stay at this step; a rollback still acts.")
_word("resume", "rollout_resume", "Go on after a pause.")
_word("advance", "rollout_step", "Go to the next step now, whatever the evidence for it.")
_word("abort", "rollout_abort", "Give the candidate's traffic back to the stable version.")


# ---------------------------------------------------------------------------------------------------------
# predictions


@verb()
@click.argument("endpoint")
@click.option("--input", "path", required=True, metavar="FILE", help="Rows as JSON; - is standard input.")
@click.option("--gateway", metavar="URL", help="Address of the gateway; asked of the server when left out.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME=VALUE", help="A header to send, such as the key's."
)
@click.option("--preview", is_flag=True, help="Ask the candidate under its preview address.")
def predict(
    session: Session,
    endpoint: str,
    path: str,
    gateway: str | None,
    headers: tuple[str, ...],
    preview: bool,
) -> None:
    """Ask ENDPOINT for predictions of rows: a list, or a body with "inputs"."""
    from modelkeep.cli.session import pairs
    from modelkeep.client.transport import Request, Transport, segment
    from modelkeep.core import codec, errors

    rows = codec.decode_untrusted(read_text(path), object)
    body = rows if isinstance(rows, dict) and "inputs" in rows else {"inputs": rows}
    request = Request(
        method="POST",
        path=f"/endpoints/{segment(endpoint)}/{'preview/' if preview else ''}predict",
        payload=codec.encode(body),
        headers={"Content-Type": "application/json", **pairs(headers, "header")},
    )
    address = gateway or _gateway(session, endpoint)
    transport = Transport(address, None, session.settings.timeout_s, agent="modelkeep-cli")
    try:
        with transport.open(request) as answer:
            data, version = answer.read(), answer.headers.get("X-Modelkeep-Version", "")
    except errors.ServerUnavailable as problem:
        raise errors.GatewayUnavailable(
            f"No gateway answers at {address}; start one with 'modelkeep gateway', or name another "
            "with --gateway."
        ) from problem
    finally:
        transport.close()
    outputs: Any = codec.decode(data, object)
    session.answer(outputs, [version], views.prediction(outputs))
    session.say(f"answered by {version}")


def _gateway(session: Session, endpoint: str) -> str:
    """The gateway that answers for the endpoint, as the server knows it, else the one of the settings."""
    from modelkeep.core import errors

    try:
        gateways = session.client.rollout_status(endpoint).gateways
    except (errors.Unavailable, errors.Denied):
        gateways = ()
    answering = [gateway.url for gateway in gateways if gateway.answering]
    return (
        answering[0]
        if answering
        else f"http://{session.settings.gateway_host}:{session.settings.gateway_port}"
    )
