"""A data folder with many versions in it, made quickly: through the store, in the tables and with the
events that the server itself would write, without its HTTP, its drafts and its uploads.

Each version is one `store.catalog.add_version` with its chained event; up to a thousand of a model share
one write, and the store's writer joins waiting writes in one commit, so that a hundred thousand take well
under a minute. All versions have the bytes of one small file, which lies in the blob store, so that a
promotion hashes something real. Run it alone to have such a registry to look at:

    python -m bench.filling DIR --models 100 --versions 10
"""

import argparse
import hashlib
import itertools
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from modelkeep import wiring
from modelkeep.core import catalog as core
from modelkeep.core import values
from modelkeep.core.events import EventKind
from modelkeep.core.values import Actor, Digest, ModelName
from modelkeep.service.house import House
from modelkeep.settings import Settings
from modelkeep.store import catalog, models
from modelkeep.store.database import Transaction

BATCH = 1_000
"""Versions written in one job: few enough that nobody who writes beside us would wait long."""
WAITING = 100
"""Jobs that may wait for the writer."""

WHO = Actor(name="ada")
CONTENT = b"a small model\n" * 64
DIGEST = Digest(f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")
FILES = (core.FileEntry(path="model.onnx", size_bytes=len(CONTENT), digest=DIGEST),)
TAGS = {"team": "risk", "region": "emea", "purpose": "scoring"}
PARAMS = {"depth": "6", "eta": "0.1"}


class Wanted(NamedTuple):
    """A model to be made, with versions 1.0.0, 1.1.0 and so on; the alias `champion` points to one of
    them."""

    name: str
    versions: int
    champion: int = 1


class Piece(NamedTuple):
    """What one job writes: some versions of a model, and the model itself before its first ones."""

    model: Wanted
    numbers: range


def fill(folder: Path, wanted: Iterable[Wanted]) -> None:
    """Make models in a data folder that no server uses."""
    now = datetime.now(UTC)
    entropy = itertools.count(1)
    with wiring.open_house(Settings(data=str(folder))) as house:
        _keep_content(house)
        waiting: deque[Future[None]] = deque()
        for piece in _pieces(wanted):
            if len(waiting) == WAITING:
                waiting.popleft().result()
            waiting.append(house.desk.database.write(partial(_write, piece=piece, now=now, entropy=entropy)))
        for future in waiting:
            future.result()


def _keep_content(house: House) -> None:
    house.blobs.begin("up_bench", len(CONTENT))
    house.blobs.append("up_bench", 0, iter([CONTENT]))
    house.blobs.commit("up_bench", DIGEST)


def _pieces(wanted: Iterable[Wanted]) -> Iterator[Piece]:
    for model in wanted:
        for first in range(1, model.versions + 1, BATCH):
            yield Piece(model, range(first, min(first + BATCH, model.versions + 1)))


def _write(tx: Transaction, piece: Piece, now: datetime, entropy: Iterator[int]) -> None:
    name = ModelName(values.DEFAULT_PROJECT, piece.model.name)

    def new_id(prefix: str) -> str:
        return values.new_id(prefix, now, next(entropy).to_bytes(10))

    if piece.numbers[0] == 1:
        row = models.add_model(
            tx, new_id("model"), name, description="", owner=WHO.name, stages=core.DEFAULT_STAGES, now=now,
            by=WHO.name,
        )  # fmt: skip
        tx.events.append(EventKind.MODEL_CREATED, at=now, actor=WHO, subject=str(name), model=str(name))
    else:
        row = models.get_row(tx, name)
    for number in piece.numbers:
        version = _version(new_id("version"), name, number, now)
        event = tx.events.append(
            EventKind.VERSION_REGISTERED, at=now, actor=WHO, subject=version.reference, model=str(name),
            number=number, body={"semver": version.semver, "digest": version.digest},
        )  # fmt: skip
        models.take_number(tx, row.id, now)
        catalog.add_version(tx, row.id, version, event.sequence)
    if piece.model.champion in piece.numbers:
        spec = core.AliasSpec(
            alias="champion", number=piece.model.champion, updated_at=now, updated_by=WHO.name
        )
        tx.events.append(
            EventKind.ALIAS_SET, at=now, actor=WHO, subject=f"{name}@champion", model=str(name),
            number=spec.number,
            body={"alias": "champion", "from": None, "to": spec.number, "protected": False},
        )  # fmt: skip
        models.put_alias(tx, row.id, spec)


def _version(id: str, name: ModelName, number: int, now: datetime) -> core.ModelVersion:  # noqa: A002
    """A version as people register them: a file, two metrics, two parameters, three tags."""
    quality = 0.5 + (number * 7_919 % 100_003) / 200_006
    return core.ModelVersion(
        id=id,
        model=name,
        number=number,
        semver=f"1.{number - 1}.0",
        digest=core.manifest_digest(core.Manifest(files=FILES)),
        size_bytes=len(CONTENT),
        files=FILES,
        metrics=(core.Metric(name="auc", value=quality), core.Metric(name="f1", value=quality * 0.9)),
        params=PARAMS,
        description="",
        tags=TAGS,
        parent=number - 1 or None,
        bump="minor",
        created_at=now,
        created_by=WHO.name,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a folder and say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="the data folder; a new one")
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--versions", type=int, default=10, help="versions of each model")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    fill(options.folder, [Wanted(f"m{index}", options.versions) for index in range(options.models)])
    versions = options.models * options.versions
    print(f"{versions:,} versions in {time.perf_counter() - started:.1f} s")
    print(f"Look at them with: modelkeep server --data {options.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
