"""The history of a metric: all points of one run, those of several runs, or some of each taken evenly.

Reading asks for READ on the run's project, and a run that may not be read is answered like one that does not
exist, or passed over among several. Logging points is `run_logging`.
"""

from collections.abc import Sequence

from modelkeep.core import codec, errors
from modelkeep.core.access import Verb
from modelkeep.core.tracking import (
    HISTORY_PAGE_MAX,
    HISTORY_RUNS_MAX,
    INT64_MAX,
    INT64_MIN,
    Metric,
    MetricPage,
)
from modelkeep.service import run_logging
from modelkeep.service.act import Act
from modelkeep.store import paging, run_log, runs
from modelkeep.store.runs import RunRow


def one_run(
    act: Act,
    run_id: str,
    key: str,
    *,
    max_results: int | None = None,
    page_token: str | None = None,
) -> MetricPage:
    """The points of one metric in the order of (timestamp, step, value), a page at a time.

    Raises:
        RunNotFound: the run is not there or not to be seen.
        Invalid, InvalidParameter: the page token is of another list; a page cannot have so few rows.
    """
    limit = min(HISTORY_PAGE_MAX if max_results is None else max_results, HISTORY_PAGE_MAX)
    if limit < 1:
        raise errors.InvalidParameter("A page has at least one row.", field="max_results")
    row = runs.find(act.tx, run_id)
    if row is None or not act.may(Verb.READ, row.project):
        raise run_logging.no_run(run_id)
    asked = codec.encode(["history", run_id, key]).decode()
    after = _read_place(page_token, asked, key) if page_token else None
    points = run_log.history(act.tx, row.serial, key, limit=limit + 1, after=after)
    if len(points) <= limit:
        return MetricPage(items=tuple(points))
    last = points[limit - 1]
    place = (last.timestamp, last.step, repr(last.value))
    return MetricPage(items=tuple(points[:limit]), next_page_token=paging.write_token(asked, place))


def several_runs(
    act: Act, run_ids: Sequence[str], key: str, *, max_results: int = HISTORY_PAGE_MAX
) -> tuple[Metric, ...]:
    """The points of one metric of several runs, run by run in the order of ids; runs that are not there
    or not to be seen have none.

    Raises:
        InvalidParameter: too many runs, or no room for a point.
    """
    room = min(max_results, HISTORY_PAGE_MAX)
    found: list[Metric] = []
    for row in _visible(act, run_ids, room):
        points = run_log.history(act.tx, row.serial, key, limit=room - len(found))
        found += (_of_run(point, row.run_id) for point in points)
        if len(found) >= room:
            break
    return tuple(found)


def sampled(
    act: Act,
    run_ids: Sequence[str],
    key: str,
    *,
    max_results: int,
    start_step: int | None = None,
    end_step: int | None = None,
) -> tuple[Metric, ...]:
    """Of each run at most `max_results` points of one metric, evenly taken from all of them in the order
    of steps; the last is always among them. Runs in the order in which they were named; those that are
    not there or not to be seen have none.

    Raises:
        InvalidParameter: too many runs, no room for a point, or half an interval.
    """
    if (start_step is None) != (end_step is None):
        raise errors.InvalidParameter("Name both start_step and end_step, or neither.", field="end_step")
    first = INT64_MIN if start_step is None else start_step
    last = INT64_MAX if end_step is None else end_step
    if first > last:
        raise errors.InvalidParameter("end_step lies before start_step; swap them.", field="end_step")
    count = min(max_results, HISTORY_PAGE_MAX)
    rows = {row.run_id: row for row in _visible(act, run_ids, count)}
    return tuple(
        _of_run(point, run_id)
        for run_id in dict.fromkeys(run_ids)
        if run_id in rows
        for point in run_log.sample(act.tx, rows[run_id].serial, key, count=count, first=first, last=last)
    )


def _visible(act: Act, run_ids: Sequence[str], room: int) -> list[RunRow]:
    if len(run_ids) > HISTORY_RUNS_MAX:
        raise errors.InvalidParameter(
            f"Ask for at most {HISTORY_RUNS_MAX} runs at a time, not {len(run_ids):,}.", field="run_ids"
        )
    if room < 1:
        raise errors.InvalidParameter("Ask for at least one point.", field="max_results")
    rows = (runs.find(act.tx, run_id) for run_id in sorted(set(run_ids)))
    return [row for row in rows if row is not None and act.may(Verb.READ, row.project)]


def _read_place(token: str, asked: str, key: str) -> Metric:
    timestamp, step, value = paging.read_token(token, asked, (int, int, str))
    try:
        return Metric(key=key, timestamp=int(timestamp), step=int(step), value=float(value))
    except ValueError as problem:
        raise errors.Invalid(
            "The page token does not belong to this list; leave it out to begin at the first page.",
            field="page_token",
        ) from problem


def _of_run(point: Metric, run_id: str) -> Metric:
    return Metric(key=point.key, value=point.value, timestamp=point.timestamp, step=point.step, run_id=run_id)
