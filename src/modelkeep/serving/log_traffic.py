"""A prediction log in Parquet as traffic: who asked when, and how stable answered.

For a rehearsal of a rollout, which needs no inputs and no outputs. The file is one that `modelkeep
predictions --parquet` wrote, or any with the same columns; what follows from it is `core.rehearsal`'s part.
"""

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.core.rehearsal import REQUESTS_MAX, Traffic
from modelkeep.core.routing import Role
from modelkeep.serving.prediction_log import require_library

FACTS = ("at", "request_id", "row", "endpoint", "side", "latency_ms", "status")
"""The columns that are needed, besides the callers' key."""


class Logged(Struct, frozen=True):
    """The traffic of a log, and when its first request came."""

    traffic: Traffic
    from_at: datetime


def read_traffic(path: Path, endpoint: str, *, key: str | None, slow_ms: float) -> Logged:
    """The requests that the endpoint's stable version answered, each once, however many rows it asked about.

    Args:
        key: the column that tells callers apart; None: each request is a caller of its own. Requests without
            a value are callers of their own, too.
        slow_ms: an answer that took longer was slow.

    Raises:
        ExtraMissing: pyarrow is not installed.
        NotFound: there is no such file, or it has no request of this endpoint.
        Invalid: it is no Parquet file, lacks a column, or has too few requests.
        LimitExceeded: it has too many requests or callers.
    """
    require_library()
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file, path, key)
            table = file.read(columns=sorted({*FACTS, *([key] if key is not None else [])}))
    except FileNotFoundError as problem:
        raise errors.NotFound(
            f"There is no file {path}; 'modelkeep predictions {endpoint} --parquet FILE' writes one."
        ) from problem
    except (pa.ArrowException, OSError) as problem:
        raise errors.Invalid(f"{path} cannot be read as a Parquet file; name one with --log.") from problem
    once = pc.and_(pc.equal(table["row"], 0), pc.equal(table["endpoint"], endpoint))
    table = table.filter(pc.and_(once, pc.equal(table["side"], Role.STABLE.value)))
    if not table.num_rows:
        raise errors.NotFound(f"{path} has no request that the stable version of {endpoint!r} answered.")
    whose = table["request_id"]
    if key is not None:
        named = pc.binary_join_element_wise("", pc.cast(table[key], pa.string()), " ")
        whose = pc.coalesce(named, whose)  # no two are mixed up: an id has no space
    at = pc.cast(table["at"], pa.timestamp("us", tz="UTC"))
    at_s = pc.cast(at, pa.int64()).to_numpy() / 1e6
    status = table["status"].to_numpy()
    return Logged(
        Traffic(
            at_s,
            pc.dictionary_encode(whose).combine_chunks().indices.to_numpy().astype(np.int64),
            status >= 500,
            table["latency_ms"].to_numpy() > slow_ms,
        ),
        pc.min(at).as_py(),
    )


def _check_columns(file: Any, path: Path, key: str | None) -> None:
    """Refuse a file without what is needed, before anything large is read."""
    names = set(file.schema_arrow.names)
    missing = [name for name in (*FACTS, key) if name is not None and name not in names]
    if missing:
        raise errors.Invalid(
            f"{path} has no column {missing[0]!r}; 'modelkeep predictions ENDPOINT --parquet FILE' writes "
            "what is needed, and --key names one of its columns."
        )
    if file.metadata.num_rows > 10 * REQUESTS_MAX:
        raise errors.LimitExceeded(f"{path} has too many rows; choose a shorter time with --since.")
