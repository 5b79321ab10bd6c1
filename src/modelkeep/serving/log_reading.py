"""Reading the prediction log together with what became known later: as rows for people and programs, or as
one Parquet file.

Safe beside a recorder that writes. Files are found and cut to a time in `prediction_log`.
"""

import heapq
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelkeep.core import codec, errors
from modelkeep.serving import tables
from modelkeep.serving.labels import read_labels
from modelkeep.serving.prediction_log import read, require_library

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 10_000
"""Rows that a reader has as plain values at a time."""


def read_labelled(
    data: Path,
    endpoint: str,
    *,
    with_labels: bool,
    since: datetime | None = None,
    until: datetime | None = None,
) -> "Iterator[pa.Table]":
    """As `read`, and with what became known of each row where that is asked for."""
    found = read(data, endpoint, since=since, until=until)
    if not with_labels:
        return found
    held = {(stored.request_id, stored.row): stored for stored in read_labels(data, endpoint)}
    return (tables.with_labels(table, held) for table in found)


def rows(
    data: Path,
    endpoint: str,
    *,
    with_labels: bool = False,
    limit: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows as plain values, labels as they were told, in the order of the files; of a `limit` the newest.

    Raises:
        as `read`.
    """
    found = (
        row
        for table in read_labelled(data, endpoint, with_labels=with_labels, since=since, until=until)
        for batch in table.to_batches(max_chunksize=BATCH_ROWS)
        for row in map(_plain, batch.to_pylist())
    )
    return found if limit is None else iter(heapq.nlargest(limit, found, key=lambda row: row["at"])[::-1])


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its label as a value."""
    if row.get("label") is not None:
        row["label"] = codec.decode(row["label"], object)
    return row


def write(
    out: Path,
    data: Path,
    endpoint: str,
    *,
    with_labels: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
) -> int:
    """All rows as one Parquet file. Columns that only some versions have are empty for the others; where
    versions differ in a column's type, the wider one holds.

    Returns:
        the number of rows.

    Raises:
        as `read`; NotFound when there are no rows; Invalid when fields changed their types too far for one
        file; StorageFull when it cannot be written.
    """
    require_library()
    import pyarrow as pa
    import pyarrow.parquet as pq

    def found() -> "Iterator[pa.Table]":
        return read_labelled(data, endpoint, with_labels=with_labels, since=since, until=until)

    try:
        schemas = [table.schema for table in found()]
        if not schemas:
            raise errors.NotFound(f"No predictions of {endpoint!r} are logged in that time.")
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as problem:
        raise errors.Invalid(
            "The versions of this time differ in the type of a field; choose a shorter time with --since."
        ) from problem
    count = 0
    try:
        with pq.ParquetWriter(out, schema, compression="zstd") as writer:
            for table in found():
                whole = pa.concat_tables([table, schema.empty_table()], promote_options="permissive").select(
                    schema.names
                )
                writer.write_table(whole.cast(schema))
                count += whole.num_rows
    except OSError as problem:
        raise errors.StorageFull(f"{out} cannot be written: {problem.strerror or problem}.") from problem
    return count
