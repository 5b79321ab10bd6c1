"""A whole registry for machines that live through random histories: every service, on blobs of any kind.

It adds to the rollout column's world what registering needs, and says each act in one line. It decides
nothing and predicts nothing; that is what the machines are for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from modelkeep.core.answers import FsckReport, Registration
from modelkeep.core.catalog import Draft, DraftSpec, ModelVersion
from modelkeep.core.rollout import Plan, Step, Strategy
from modelkeep.core.routing import WHOLE_PPM, VersionKey
from modelkeep.core.values import ModelName, Ref, parse_ref
from modelkeep.ports import BlobStore
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.catalog import Catalog
from modelkeep.service.traffic import Traffic
from modelkeep.store.database import Database
from tests.service.catalog_world import SIGNATURE, entry_of
from tests.service.rollout_world import FakeGateway, RolloutWorld

AT_ONCE = Plan(
    strategy=Strategy.IMMEDIATE, steps=(Step(weight_ppm=WHOLE_PPM, min_s=0.0, max_s=600.0),), prepare_s=120.0
)
TURNS_MAX = 12
"""Turns after which an immediate rollout has ended, with a second each."""


class RegistryWorld(RolloutWorld):
    """The services, the people of the worlds below it, and one gateway."""

    def __init__(self, database: Database, blobs: BlobStore | None = None) -> None:
        super().__init__(database, blobs)
        self.gateway = FakeGateway(self)

    @property
    def catalog(self) -> Catalog:
        """The catalog's verbs."""
        return self.house.catalog

    @property
    def blobs(self) -> BlobStore:
        """The bytes."""
        return self.house.blobs

    def begin(self, model: ModelName, files: dict[str, bytes], by: str = "owner", **spec: Any) -> Draft:
        """Announce these files, by path."""
        announced = tuple(entry_of(path, data) for path, data in files.items())
        fields = {"signature": SIGNATURE} | spec
        return self.do(by, self.catalog.begin_draft, model, DraftSpec(files=announced, **fields))

    def send(self, draft: str, path: str, data: bytes, by: str = "owner") -> None:
        """Send what is missing of a file, from where the blob store says that it ends."""
        stands = self.read(by, self.catalog.get_draft, draft)
        offset = next(entry.offset for entry in stands.files if entry.path == path)
        plan = self.do(by, self.catalog.prepare_upload, draft, path)
        self.catalog.store_bytes(plan, offset, [data[offset:]])

    def finalize(self, draft: str, by: str = "owner") -> Registration:
        """Make the version."""
        return self.do(by, self.catalog.finalize, draft)

    def register(self, model: ModelName, data: bytes, by: str = "owner", **spec: Any) -> ModelVersion:
        """A version of one file, whatever of it is stored already."""
        draft = self.begin(model, {"model.onnx": data}, by, **spec)
        for entry in draft.files:
            if not entry.present:
                self.send(draft.id, entry.path, data, by)
        return self.finalize(draft.id, by).version

    def key_of(self, model: ModelName, number: int) -> VersionKey:
        """What gateways call a version."""
        return self.desk.read(SYSTEM_CONTEXT, Traffic().spec, model, number).key

    def fsck(self) -> FsckReport:
        """What a check of everything finds."""
        return self.catalog.fsck(self.desk, self.context("owner"))

    def settle(self) -> None:
        """Let the gateway do as it is told until no rollout is under way."""
        for _ in range(TURNS_MAX):
            if not self.desk.read(self.context("owner"), self.rollouts.active):
                return
            self.turn(self.gateway)


def numbered(model: ModelName, number: int) -> Ref:
    """The reference of a version by its number."""
    return parse_ref(f"{model}:#{number}")


@contextmanager
def database_in_a_folder() -> Iterator[tuple[Database, Path]]:
    """A fresh SQLite database, and the folder that it stands in."""
    with TemporaryDirectory() as folder, Database.open(f"sqlite:///{Path(folder) / 'store.db'}") as database:
        yield database, Path(folder)
