"""Commands about what was predicted: read a gateway's prediction log, and tell what became known of it.

The log is read from the gateway's folder on this machine, for nobody who may only ask a gateway may read what
others asked. Feedback goes to the gateway, as predictions do.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli.session import Session, read_text, verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from modelkeep.cli.show import Screen
    from modelkeep.core.feedback import Label, Taken

ROWS_SHOWN = 50
"""Rows that a person sees when no limit is said; a pipe gets all."""
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


@verb()
@click.argument("endpoint")
@click.option("--since", metavar="WHEN", help="A time, or how long ago, such as 30m, 12h or 7d.")
@click.option("--until", metavar="WHEN", help="Rows before this.")
@click.option("--with-labels", is_flag=True, help="Add what became known of each row.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="The newest N rows.")
@click.option("--parquet", "out", metavar="FILE", help="Write the rows to a Parquet file.")
@click.option("--data", metavar="DIR", help="The data folder of the gateway [MODELKEEP_GATEWAY_DATA].")
def predictions(
    session: Session,
    endpoint: str,
    since: str | None,
    until: str | None,
    with_labels: bool,
    limit: int | None,
    out: str | None,
    data: str | None,
) -> None:
    """Read what the gateway on this machine logged for ENDPOINT: one row for each row that was asked about.
    With
    --json one object a line."""
    from modelkeep.cli.processes import gateway_folder
    from modelkeep.serving import log_reading

    folder = gateway_folder(session.settings, data)
    bounds = {"since": _when(since, "--since"), "until": _when(until, "--until")}
    if out is not None:
        if limit is not None:
            raise click.UsageError("--limit is for rows to look at; choose those of a file with --since.")
        rows = log_reading.write(Path(out), folder, endpoint, with_labels=with_labels, **bounds)
        session.answer(
            {"file": out, "rows": rows}, [out], lambda screen: screen.line(f"{rows:,} rows in {out}")
        )
        return
    if limit is None and not session.json and sys.stdout.isatty():
        limit = ROWS_SHOWN
    found = log_reading.rows(folder, endpoint, with_labels=with_labels, limit=limit, **bounds)
    if session.json:
        for row in found:
            session.screen.raw(_line(row))
    elif session.quiet:
        for name in dict.fromkeys(row["request_id"] for row in found):
            session.screen.line(name)
    else:
        _table(session.screen, found)


def _line(row: dict[str, Any]) -> str:
    from modelkeep.core import codec

    return codec.encode(row).decode()


def _table(screen: "Screen", rows: "Iterator[dict[str, Any]]") -> None:
    """The newest last, as a log reads."""
    from modelkeep.cli.show import moment, number

    shown = []
    for row in rows:
        inputs, outputs = (
            " ".join(
                f"{name.partition('.')[2] or name}={_short(row[name])}"
                for name in row
                if name.startswith(side)
            )
            for side in ("input", "output")
        )
        shown.append(
            (
                moment(row["at"]), row["request_id"], row["version"], row["side"], str(row["status"]),
                f"{number(row['latency_ms'])} ms", inputs, outputs, _label(row),
            )
        )  # fmt: skip
    screen.table(("at", "request", "version", "side", "status", "took", "inputs", "outputs", "label"), shown)


def _label(row: dict[str, Any]) -> str | None:
    from modelkeep.core import codec

    return codec.encode(row["label"]).decode() if row.get("label") is not None else None


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _when(text: str | None, option: str) -> datetime | None:
    """`7d` ago, or a time."""
    from datetime import UTC, timedelta

    from modelkeep.core import codec, errors

    if text is None:
        return None
    if text[:-1].isdigit() and text[-1:] in _UNITS:
        return datetime.now(UTC) - timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
    try:
        return codec.parse_time(text)
    except errors.InvalidTime as problem:
        raise click.BadParameter(
            f"{problem.message} Or say how long ago: 30m, 12h, 7d.", param_hint=option
        ) from None


@verb()
@click.argument("endpoint")
@click.argument("request_id", required=False)
@click.argument("label", required=False)
@click.option(
    "--row", type=int, default=0, metavar="N", help="The row of the request; the first unless told."
)
@click.option("--at", metavar="TIME", help="When it became true, where that is known.")
@click.option(
    "--input", "path", metavar="FILE", help="Many labels, one JSON object a line; - is standard input."
)
@click.option("--gateway", metavar="URL", help="Address of the gateway; asked of the server when left out.")
@click.option("--callers-token", metavar="TOKEN", help="What callers of the gateway show, where they do.")
def feedback(
    session: Session,
    endpoint: str,
    request_id: str | None,
    label: str | None,
    row: int,
    at: str | None,
    path: str | None,
    gateway: str | None,
    callers_token: str | None,
) -> None:
    """Tell what became known of a prediction of ENDPOINT: the id of its request and the label, in JSON or as
    a word. The same again changes nothing, another label takes its place."""
    from modelkeep.core import codec
    from modelkeep.core.feedback import Label

    if (path is None) == (request_id is None) or (request_id is not None and label is None):
        raise click.UsageError("Say REQUEST_ID and LABEL, or --input FILE with many.")
    if path is not None:
        labels = list(_labels(read_text(path)))
    else:
        assert request_id is not None
        assert label is not None
        moment = codec.parse_time(at) if at is not None else None
        labels = [Label(request_id=request_id, label=_value(label), row=row, at=moment)]
    taken = session.client.feedback_many(endpoint, labels, gateway=gateway, callers_token=callers_token)
    session.answer(taken, [str(taken.new + taken.changed)], lambda screen: screen.line(_told(taken)))


def _labels(text: bytes) -> "Iterator[Label]":
    """The labels of a file, one a line; empty lines are passed over.

    Raises:
        MalformedBody: says which line holds none. Nothing was sent then.
    """
    from modelkeep.core import codec, errors
    from modelkeep.core.feedback import Label

    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield codec.decode_untrusted(line, Label)
        except errors.MalformedBody as problem:
            raise errors.MalformedBody(
                f"In line {number}: {problem.message} No label was sent.",
                **problem.details | {"line": number},
            ) from None


def _value(text: str) -> Any:
    """A label as it was typed: JSON where it is some, else the word itself."""
    from modelkeep.core import codec, errors

    try:
        return codec.decode_untrusted(text.encode(), object)
    except errors.MalformedBody:
        return text


def _told(taken: "Taken") -> str:
    return f"{taken.new:,} new, {taken.changed:,} changed, {taken.unchanged:,} known already"
