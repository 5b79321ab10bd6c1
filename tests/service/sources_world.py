"""A registry and a tracking server over one store, as the house has them: runs keep files, and versions are
made of them.

`SourcesWorld` says in one line what a test needs done, always through the services' own verbs.
"""

from collections.abc import Mapping
from typing import Any

from modelkeep.core.answers import Registration
from modelkeep.core.catalog import ModelVersion
from modelkeep.core.tracking import LoggedModelStatus, Tag
from modelkeep.core.values import ModelName
from modelkeep.service.act import Act, Context
from modelkeep.service.artifacts import Artifacts, OwnedPlace, Owner
from modelkeep.service.labels import check_new_name, create
from modelkeep.service.logged_models import LoggedModels
from modelkeep.service.sources import Sources, VersionRequest
from modelkeep.service.tracking import Tracking
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.database import Database
from tests.service.catalog_world import CHURN, OWNER, World

MLMODEL = b"""\
artifact_path: mlflow-artifacts:/0/models/x/artifacts
flavors:
  python_function:
    env: {conda: conda.yaml, virtualenv: python_env.yaml}
    loader_module: mlflow.sklearn
    python_version: 3.11.7
  sklearn:
    pickled_model: model.skops
    serialization_format: skops
    sklearn_version: 1.9.1
mlflow_version: 3.18.0
model_size_bytes: 512
model_uuid: 4a1f0c3d0d8c4b1bb4b2e6b3a0f1a2b3
signature:
  inputs: '[{"type": "double", "name": "age", "required": true}]'
  outputs: '[{"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}]'
  params: null
utc_time_created: '2026-01-25 14:03:00.000000'
"""
REQUIREMENTS = b"scikit-learn==1.9.1\nnumpy==2.4.0\n"
FILES = {"MLmodel": MLMODEL, "model.skops": b"weights", "requirements.txt": REQUIREMENTS}
"""What a scikit-learn model looks like when it was logged."""


class SourcesWorld(World):
    """A registry, tracking and artifacts, with what a training script would do in short."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.tracking = Tracking()
        self.logged_models = LoggedModels()
        self.artifacts = Artifacts(self.blobs)
        self.sources = Sources(self.blobs, self.catalog, self.artifacts)

    def model(self, name: ModelName = CHURN, tags: dict[str, str] | None = None) -> ModelName:
        """A model without versions."""
        self.do(OWNER, _create, name, tags or {})
        return name

    def run(self, tags: Mapping[str, str] | None = None, project: str = "default", **more: Any) -> str:
        """The id of a new run with these tags."""
        given = [Tag(key, value) for key, value in (tags or {}).items()]
        experiment = more.pop("experiment", "0")
        run = self.do(OWNER, self.tracking.create_run, experiment, tags=given, project=project, **more)
        return run.info.run_id

    def logged(
        self, run_id: str | None = None, name: str = "model", experiment: str = "0", **more: Any
    ) -> str:
        """The id of a new logged model that is ready, with the files of a scikit-learn model."""
        files = more.pop("files", FILES)
        model = self.do(OWNER, self.logged_models.create, experiment, name=name, source_run_id=run_id, **more)
        self.put(Owner(OwnerKind.LOGGED_MODEL, model.model_id), files)
        self.do(OWNER, self.logged_models.finalize, model.model_id, LoggedModelStatus.READY)
        return model.model_id

    def keep(self, run_id: str, files: Mapping[str, bytes], folder: str = "model") -> None:
        """Log files to a run, in a folder."""
        self.put(Owner(OwnerKind.RUN, run_id), {f"{folder}/{path}": data for path, data in files.items()})

    def put(self, owner: Owner, files: Mapping[str, bytes]) -> None:
        """Log files."""
        for path, data in files.items():
            plan = self.do(OWNER, self.artifacts.prepare, OwnedPlace(owner=owner, path=path))
            plan = self.artifacts.finish(self.artifacts.store_bytes(plan, 0, [data]))
            self.do(OWNER, self.artifacts.note, plan)

    def make(self, source: str, model: ModelName = CHURN, who: Context = OWNER, **more: Any) -> Registration:
        """Register what an address names, as a client would: prepare, then the act."""
        request = VersionRequest(model=model, source=source, **{"create_model": True, **more})
        prepared = self.sources.prepare(self.desk, who, request)
        return self.do(who, self.sources.register, prepared)

    def made(self, source: str, model: ModelName = CHURN, who: Context = OWNER, **more: Any) -> ModelVersion:
        """The version of that."""
        return self.make(source, model, who, **more).version


def _create(act: Act, name: ModelName, tags: dict[str, str]) -> None:
    check_new_name(act, name)
    create(act, name, tags=tags)
