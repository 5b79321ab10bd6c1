"""What batching is worth: predictions a second with it and without, at 1, 8 and 64 connections, of a model
whose library takes long for a call (AdaBoost with 100 stumps) and of one that is quick by itself (a forest of
100 trees, which the gateway walks without its library).

    python -m bench.batching [--quick] [--json] [--folder DIR]

Two real gateways with one worker each and the same scikit-learn model, of which one computes every request
by itself. They are asked in turns, the other one first in every second round, and the middle round counts.
One connection shows that a worker which is idle waits for nothing.
"""

import io
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from bench import report
from bench.gateway_cost import ClosedLoop
from bench.report import Row, Table
from modelkeep.core.routing import Epoch, Route, RoutingTable, VersionSpec
from modelkeep.core.signature import DataType, Field, Signature
from tests.serving import models
from tests.serving.control_plane import FakeControlPlane
from tests.serving.gateways import Gateway, running

CONNECTIONS = (1, 8, 64)
TREES = 100
STUMPS, FOREST = f"AdaBoost with {TREES} stumps", f"a forest of {TREES} trees"
PROMISED = (STUMPS, 8)
WORTH = 3.0
"""Times as many predictions a second: what this row promises."""


def version(what: str) -> tuple[dict[str, bytes], VersionSpec]:
    """A fitted model as a version: its file and its description."""
    import joblib
    from sklearn.ensemble import AdaBoostClassifier, RandomForestClassifier

    random = np.random.default_rng(1)
    rows = random.normal(size=(1000, 2))
    model = AdaBoostClassifier if what == STUMPS else RandomForestClassifier
    fitted = model(n_estimators=TREES, random_state=1).fit(rows, rows.sum(axis=1) > 0)
    buffer = io.BytesIO()
    joblib.dump(fitted, buffer)
    files = {"model.joblib": buffer.getvalue()}
    outputs = (Field(name="probability", type=DataType.FLOAT64, minimum=0, maximum=1),)
    signature = Signature(inputs=models.AGE_INCOME, outputs=outputs)
    return files, models.spec(files, "1.0.0", signature=signature)


def rate(gateway: Gateway, connections: int, seconds: float) -> float:
    """Predictions a second of a closed loop; the load stops at the first one that fails."""
    seen = ClosedLoop(gateway.port, seconds, connections).result()
    if seen["failed"]:
        raise RuntimeError(f"{seen['failed']} predictions failed")
    return float(seen["requests"] / seen["seconds"])


def measured(
    what: str, seconds: float, rounds: int, folder: str | None
) -> dict[int, list[tuple[float, float]]]:
    """By number of connections: each round's rate with batching and without."""
    files, spec = version(what)
    route = Route(endpoint="churn", epoch=Epoch(1, 0), stable=spec.key)
    found: dict[int, list[tuple[float, float]]] = {count: [] for count in CONNECTIONS}
    with tempfile.TemporaryDirectory(prefix="mk-", dir=folder) as name, FakeControlPlane() as plane:
        plane.blobs.update(models.blobs(files))
        plane.publish(RoutingTable(number=1, routes=(route,), versions=(spec,)))
        with (
            running(Path(name) / "together", plane.url) as together,
            running(Path(name) / "alone", plane.url, options="batch_rows_max=1") as alone,
        ):
            for gateway in (together, alone):
                gateway.wait_route("churn", stable="churn:1.0.0")
                rate(gateway, 1, min(0.5, seconds))  # the first requests are not counted
            for turn in range(rounds):
                for count in CONNECTIONS:
                    report.tell(f"{what}: round {turn + 1}, {count} connections")
                    order = (together, alone) if turn % 2 == 0 else (alone, together)
                    rates = {id(gateway): rate(gateway, count, seconds) for gateway in order}
                    found[count].append((rates[id(together)], rates[id(alone)]))
    return found


def rows_of(what: str, found: dict[int, list[tuple[float, float]]]) -> Iterator[Row]:
    """A row for each number of connections."""
    for count, rounds in found.items():
        together, alone = (statistics.median(side) for side in zip(*rounds, strict=True))
        ratio = statistics.median(one / other for one, other in rounds)
        promised = (what, count) == PROMISED
        yield Row(
            what=f"{what}, {count} connection{'s' if count > 1 else ''}",
            figure=f"{together:,.0f} a second",
            beside=f"{alone:,.0f}",
            ratio=ratio,
            goal=f">= {WORTH:g} times" if promised else "",
            kept=ratio >= WORTH if promised else None,
            values={"together": together, "alone": alone},
        )


def table_of(rows: Iterable[Row]) -> Table:
    """What was measured."""
    return Table(
        name="batching",
        title="Requests that share a call",
        rows=tuple(rows),
        remarks=("One row a request, one front, one worker; scikit-learn as it is, not converted.",),
        beside="each by itself",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one table. Returns 1 when a promise was broken."""
    options = report.arguments(__doc__).parse_args(argv)
    machine = report.this_machine()
    seconds, rounds = (0.6, 1) if options.quick else (4.0, 5)
    table = table_of(
        row
        for what in (STUMPS, FOREST)
        for row in rows_of(what, measured(what, seconds, rounds, options.folder))
    )
    return report.finish(table, machine, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
