"""How a row of the MLflow door is made: its name, its language, and its second address.

The rows themselves are in `rows`, and in files of their own where there are many of one noun.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from msgspec.structs import replace

from modelkeep.web.mlflow.wire import Nothing
from modelkeep.web.operations import Door, Mode, NoQuery, Operation

API = "/api/2.0/mlflow/"
API3 = "/api/3.0/mlflow/"
PAGES = "/ajax-api/"


def row(
    method: str,
    path: str,
    mode: Mode,
    handler: Any,
    answer: Any = Nothing,
    *,
    body: Any = None,
    query: Any = NoQuery,
    **more: Any,
) -> Operation:
    """One row; its name is made of its path, and its summary is the handler's first line."""
    words = path.replace(API, "").replace(API3, "v3/").removeprefix("/api/2.0/")
    name = "mlflow_" + (re.sub(r"\W+", "_", words).strip("_") or "first_page")
    return Operation(
        name=f"{name}_{method.lower()}",
        method=method,
        path=path,
        mode=mode,
        handler=handler,
        summary=(handler.__doc__ or "").partition("\n")[0],
        answer=answer,
        body=body,
        query=query,
        door=Door.MLFLOW,
        **more,
    )


def both(rows: Iterable[Operation]) -> Iterator[Operation]:
    """Each row, and the same under the address that MLflow's pages use."""
    for each in rows:
        yield each
        if each.path.startswith("/api/"):
            yield replace(each, path=PAGES + each.path.removeprefix("/api/"), name=each.name + "_ajax")
