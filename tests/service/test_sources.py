"""Versions out of what was tried: runs, logged models, other versions and prompts become versions, and
nothing is copied."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import bindparam, update

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.bump import FIRST_VERSION
from modelkeep.core.catalog import DraftSpec, ModelChange
from modelkeep.core.prompts import IS_PROMPT, PROMPT_FILE, PROMPT_TEXT
from modelkeep.core.provenance import Code, DatasetSnapshot, EnvironmentLock, Provenance
from modelkeep.core.signature import DataType
from modelkeep.core.source_address import address, parse_source
from modelkeep.core.tracking import Dataset, DatasetInput, LoggedModelStatus, Metric, ModelOutput, Tag
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.service.artifacts import OwnedPlace, Owner
from modelkeep.service.sources import DUPLICATE_OF, VersionRequest
from modelkeep.store.artifacts import OwnerKind
from modelkeep.store.database import Database
from modelkeep.store.schema import versions
from tests.service.catalog_world import CHURN, OWNER, context, digest_of, entry_of
from tests.service.sources_world import FILES, MLMODEL, SourcesWorld

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GIT = {
    "mlflow.source.git.commit": COMMIT,
    "mlflow.source.git.branch": "main",
    "mlflow.source.git.repoURL": "https://bob:secret@git.example/churn.git",
    "mlflow.source.name": "train.py",
    "mlflow.source.type": "LOCAL",
    "mlflow.user": "ann",
}
DATA = DatasetInput(
    dataset=Dataset(name="customers", digest="a1b2c3d4", source_type="local", source="customers.csv"),
    tags=(Tag("mlflow.data.context", "training"),),
)


@pytest.fixture
def world(database: Database) -> SourcesWorld:
    """A registry and tracking, both empty."""
    return SourcesWorld(database)


def trained(world: SourcesWorld, **params: str) -> str:
    """A run that logged its code, data, params, a metric and a model."""
    run_id = world.run(GIT)
    given = [Tag(key, value) for key, value in (params or {"depth": "6"}).items()]
    points = [Metric(key="auc", value=0.9, timestamp=1), Metric(key="auc", value=0.94, timestamp=2, step=1)]
    world.do(OWNER, world.tracking.log_batch, run_id, points, given, ())
    world.do(OWNER, world.tracking.log_inputs, run_id, (DATA,), ())
    world.keep(run_id, FILES)
    return run_id


# ---------------------------------------------------------------------------------------------------- a run


@pytest.mark.req("T3", "T6", "V4")
def test_a_run_becomes_a_version(world: SourcesWorld) -> None:
    """Files, the last of each metric, params, signature, framework and provenance of a run become the
    version's.
    """
    run_id = trained(world)
    made = world.make(f"runs:/{run_id}/model")
    version = made.version
    assert made.created
    assert (version.number, version.semver) == (1, str(FIRST_VERSION))
    assert {file.path: file.digest for file in version.files} == {p: digest_of(d) for p, d in FILES.items()}
    assert [(metric.name, metric.value) for metric in version.metrics] == [("auc", 0.94)]
    assert version.params == {"depth": "6"}
    assert version.signature is not None
    assert [(field.name, field.type) for field in version.signature.inputs] == [("age", DataType.FLOAT64)]
    assert version.metadata["model"] == {
        "framework": "scikit-learn",
        "framework_version": "1.9.1",
        "format": "skops",
    }
    assert version.metadata["mlflow"]["flavors"] == ["python_function", "sklearn"]
    provenance = version.provenance
    assert provenance is not None
    assert (provenance.run_id, provenance.source) == (run_id, f"runs:/{run_id}/model")
    assert provenance.code is not None
    assert provenance.code.commit == COMMIT
    assert provenance.code.repository == "https://git.example/churn.git"
    assert provenance.user == "ann"
    assert [(d.name, d.digest, d.role) for d in provenance.datasets] == [
        ("customers", "a1b2c3d4", "training")
    ]
    assert provenance.environment is not None
    assert provenance.environment.kind == "requirements"
    assert version.identity is not None
    assert version.identity.whole
    assert world.get("churn:1.0.0") == version


@pytest.mark.req("T3")
def test_nothing_is_copied(world: SourcesWorld) -> None:
    """The blob store has the same contents after a registration as before."""
    run_id = trained(world)
    before = {blob.digest for blob in world.blobs.iterate()}
    world.make(f"runs:/{run_id}/model")
    assert {blob.digest for blob in world.blobs.iterate()} == before


@pytest.mark.req("V4")
def test_equal_ingredients_are_pointed_out(world: SourcesWorld) -> None:
    """A second run of the same code, data, params and environment gives another version with the same
    identity, and the answer names the first; other params do not."""
    first = world.make(f"runs:/{trained(world)}/model")
    run_id = trained(world)
    world.keep(run_id, {"model.skops": b"other weights"})
    second = world.make(f"runs:/{run_id}/model")
    assert second.version.digest != first.version.digest
    assert second.version.identity == first.version.identity
    assert (first.same_identity, second.same_identity) == ((), ("churn:1.0.0",))
    third = world.make(f"runs:/{trained(world, depth='7')}/model")
    assert third.same_identity == ()
    assert third.version.identity is not None
    found = world.read(
        OWNER, world.catalog.search_versions, filter_text=f'identity = "{third.version.identity.digest}"'
    )
    assert [version.number for version in found.items] == [3]


@pytest.mark.req("V4")
def test_our_own_door_points_it_out_too(world: SourcesWorld) -> None:
    """A draft with the ingredients of a version is told so in the preview and at the end, and when it is
    asked again; the same bytes again are that version itself, which is not named as its own copy."""
    stated = Provenance(
        code=Code(commit=COMMIT),
        datasets=(DatasetSnapshot(digest="a1b2c3d4"),),
        environment=EnvironmentLock(kind="requirements", digest=digest_of(b"lock")),
    )
    known: dict[str, Any] = {"provenance": stated, "params": {"depth": "6"}}
    first = world.register(CHURN, b"one", **known)
    spec = DraftSpec(files=(entry_of("model.onnx", b"two"),), **known)
    assert world.read(OWNER, world.catalog.preview, CHURN, spec).same_identity == ("churn:1.0.0",)
    draft = world.begin(CHURN, {"model.onnx": b"two"}, **known)
    world.send(draft, {"model.onnx": b"two"})
    made = [world.do(OWNER, world.catalog.finalize, draft.id) for _ in range(2)]
    assert [answer.same_identity for answer in made] == [("churn:1.0.0",)] * 2
    assert made[0].version.identity == first.version.identity
    again = DraftSpec(files=(entry_of("model.onnx", b"one"),), **known)
    foreseen = world.read(OWNER, world.catalog.preview, CHURN, again)
    assert not foreseen.created
    assert foreseen.same_identity == (made[0].version.reference,)
    found = Provenance(code=Code(commit="f" * 40, detected=True))
    assert not world.register(CHURN, b"one", provenance=found, params={"depth": "6"}).created


@pytest.mark.req("V4")
def test_a_partial_identity_claims_nothing(world: SourcesWorld) -> None:
    """Two runs that both leave their data out may have had other data: no duplicate is claimed."""
    answers = []
    for _ in range(2):
        run_id = world.run(GIT)
        world.do(OWNER, world.tracking.log_batch, run_id, (), [Tag("depth", "6")], ())
        world.keep(run_id, FILES)
        answers.append(world.make(f"runs:/{run_id}/model"))
    assert [answer.same_identity for answer in answers] == [(), ()]
    first, second = (answer.version.identity for answer in answers)
    assert first is not None
    assert first == second
    assert first.missing == ("data",)


@pytest.mark.req("T3", "V2")
def test_equal_bytes_get_a_new_number(world: SourcesWorld) -> None:
    """Registering the same files again is a new version, a patch, which names the one it repeats."""
    source = f"runs:/{trained(world)}/model"
    first, second, third = (world.made(source) for _ in range(3))
    assert [v.number for v in (first, second, third)] == [1, 2, 3]
    assert [v.semver for v in (first, second, third)] == ["1.0.0", "1.0.1", "1.0.2"]
    assert first.digest == second.digest
    assert DUPLICATE_OF not in first.tags
    assert second.tags[DUPLICATE_OF] == "churn:1.0.0"
    assert third.tags[DUPLICATE_OF] == "churn:1.0.1"
    assert second.bump_reasons


def test_what_a_run_cannot_hand_on_is_said(world: SourcesWorld) -> None:
    """Metrics that are no finite numbers, params with control characters and a commit that is none are left
    out, and the version's reasons say so."""
    run_id = world.run({"mlflow.source.git.commit": "not-a-commit"})
    points = [
        Metric(key="loss", value=math.nan, timestamp=1),
        Metric(key="best", value=math.inf, timestamp=1),
        Metric(key="auc", value=0.5, timestamp=1),
    ]
    given = [Tag("ok", "1"), Tag("bell", "\x07"), Tag("empty", "")]
    world.do(OWNER, world.tracking.log_batch, run_id, points, given, ())
    world.keep(run_id, {**FILES, "MLmodel": b"flavors: [", "requirements.txt": b"\xff"})
    made = world.make(f"runs:/{run_id}/model")
    assert [metric.name for metric in made.version.metrics] == ["auc"]
    assert made.version.params == {"ok": "1", "empty": ""}
    assert made.version.signature is None
    said = " ".join(made.reasons)
    for word in (
        "metrics best, loss were left out: not a finite number",
        "parameter bell was",
        "MLmodel",
        "commit",
        "list of packages",
    ):
        assert word in said
    assert made.version.bump_reasons == made.reasons


@pytest.mark.parametrize(
    "mlmodel",
    [
        b"",
        b"- a\n",
        b"flavors: {sklearn: 3}\nsignature: {inputs: 7}\n",
        b"flavors: {sklearn: {sklearn_version: [1]}}\nmetadata: {a: .nan}\nmodel_uuid: {}\n",
        b'signature: {inputs: \'[{"type": "object", "name": "o"}]\'}\n',
        b"a: &a [1]\nb: [*a, *a]\nflavors: {? [1] : 2}\n",
        b"x" * 300_000,
        b"\xff\xfe\x00",
        b"signature: {inputs: '" + b"[" * 500 + b"'}\n",
    ],
    ids=lambda data: repr(data[:20]),
)
@pytest.mark.req("T3")
@pytest.mark.hostile("code-in-models")
def test_a_strange_mlmodel_file_stops_nothing(world: SourcesWorld, mlmodel: bytes) -> None:
    """Whatever stands in the MLmodel file, the files become a version, without what could not be read."""
    run_id = world.run()
    world.keep(run_id, {"MLmodel": mlmodel})
    version = world.made(f"runs:/{run_id}/model")
    assert version.signature is None
    assert [file.path for file in version.files] == ["MLmodel"]


# --------------------------------------------------------------------------------------------- logged models


@pytest.mark.req("T3")
def test_a_logged_model_becomes_a_version(world: SourcesWorld) -> None:
    """A logged model's files, params and metrics become the version's; both it and its run know of it."""
    run_id = trained(world)
    model_id = world.logged(run_id, params=[Tag("depth", "8")])
    point = Metric(key="auc", value=0.5, timestamp=1, model_id=model_id)
    world.do(OWNER, world.tracking.log_batch, run_id, [point], (), ())
    version = world.made(f"models:/{model_id}", run_id=run_id, model_id=model_id)
    assert version.provenance is not None
    assert (version.provenance.logged_model_id, version.provenance.run_id) == (model_id, run_id)
    assert version.provenance.source == f"models:/{model_id}"
    assert version.params == {"depth": "8"}
    assert [(metric.name, metric.value) for metric in version.metrics] == [("auc", 0.5)]
    logged = world.read(OWNER, world.logged_models.get, model_id)
    assert logged.registrations == (("churn", 1),)
    assert [v.number for v in world.read(OWNER, world.sources.versions_of_run, run_id)] == [1]


@pytest.mark.req("T3")
def test_what_a_run_measures_is_its_only_models(world: SourcesWorld) -> None:
    """The client copies the points of step 0 to a model; the version has the last, and what came after it. A
    checkpoint has its own alone."""
    values = {}
    for step in (0, 3):
        run_id = world.run()
        model_id = world.logged(run_id, params=[Tag("depth", "8")])
        output = ModelOutput(model_id=model_id, step=step)
        world.do(OWNER, world.tracking.log_outputs, run_id, [output])
        points = [Metric(key="loss", value=0.9 - each / 10, timestamp=each, step=each) for each in range(5)]
        points += [Metric(key="loss", value=0.9, timestamp=9, step=0, model_id=model_id)]
        points += [Metric(key="after", value=0.1, timestamp=9)]
        world.do(OWNER, world.tracking.log_batch, run_id, points, [Tag("late", "yes")], ())
        version = world.made(f"models:/{model_id}")
        values[step] = ({metric.name: metric.value for metric in version.metrics}, version.params)
    assert values == {0: ({"loss": 0.5, "after": 0.1}, {"depth": "8", "late": "yes"}),
                      3: ({"loss": 0.9}, {"depth": "8"})}  # fmt: skip


@pytest.mark.req("T3")
def test_a_run_names_its_logged_model(world: SourcesWorld) -> None:
    """A run without files in that folder means the logged model of that name; of several, the last step's."""
    run_id = world.run()
    ids = [world.logged(run_id, files={**FILES, "model.skops": name}) for name in (b"first", b"second")]
    steps = (2, 1)
    outputs = [ModelOutput(model_id=i, step=s) for i, s in zip(ids, steps, strict=True)]
    world.do(OWNER, world.tracking.log_outputs, run_id, outputs)
    version = world.made(f"runs:/{run_id}/model")
    assert version.provenance is not None
    assert version.provenance.logged_model_id == ids[0]
    assert digest_of(b"first") in {file.digest for file in version.files}
    with pytest.raises(errors.InvalidParameter, match="log the model first"):
        world.made(f"runs:/{run_id}/other")


@pytest.mark.parametrize("state", ["failed", "deleted", "empty"])
def test_a_logged_model_without_files_is_refused(world: SourcesWorld, state: str) -> None:
    """What failed, was deleted, or has no files becomes no version, and leaves no model behind."""
    model_id = world.logged(files={} if state == "empty" else FILES)
    if state == "failed":
        world.do(OWNER, world.logged_models.finalize, model_id, LoggedModelStatus.FAILED)
    if state == "deleted":
        world.do(OWNER, world.logged_models.delete, model_id)
    expected = errors.LoggedModelNotFound if state == "deleted" else errors.InvalidParameter
    with pytest.raises(expected):
        world.made(f"models:/{model_id}")
    with pytest.raises(errors.ModelNotFound):
        world.read(OWNER, world.catalog.get_model, CHURN)


# --------------------------------------------------------------------------------------------------- copies


@pytest.mark.req("T4")
@pytest.mark.parametrize(
    "source", ["models:/churn/1", "models:/churn/1.0.0", "models:/churn@best", "models:/churn/none", "stored"]
)
def test_a_version_is_copied(world: SourcesWorld, source: str) -> None:
    """A copy shares the files, keeps the run it came from, and says which version it is a copy of."""
    run_id = trained(world)
    first = world.made(f"runs:/{run_id}/model")
    world.do(OWNER, world.catalog.set_alias, CHURN, "best", parse_ref("churn:#1"))
    target = ModelName("default", "My Model (v2)")
    given = "mlflow-artifacts:/registered-models/default/churn/1" if source == "stored" else source
    copy = world.made(given, target, run_id=run_id, tags={"team": "risk"})
    assert (copy.digest, copy.signature, copy.metrics) == (first.digest, first.signature, first.metrics)
    assert (copy.number, copy.tags) == (1, {"team": "risk"})
    assert copy.identity == first.identity
    provenance = copy.provenance
    assert provenance is not None
    assert (provenance.run_id, provenance.origin) == (run_id, "churn:1.0.0")
    assert provenance.source == ("models:/churn/1" if source != "stored" else given)
    assert world.get("My Model (v2):1.0.0") == copy
    assert world.get("models:/My Model (v2)/1") == copy


# --------------------------------------------------------------------------------- what the record holds


@pytest.mark.req("T3")
def test_versions_are_found_by_where_they_come_from(world: SourcesWorld) -> None:
    """Run, source, commit and identity are searched by, and only the caller's own are found."""
    run_id = trained(world)
    version = world.made(f"runs:/{run_id}/model")
    world.register("other", b"w")
    assert version.identity is not None
    for text in (
        f'run_id = "{run_id}"',
        f'source like "runs:/{run_id}/%"',
        f'code_commit = "{COMMIT.upper()}"',
        f'identity = "{version.identity.digest}"',
        "identity exists",
    ):
        found = world.read(OWNER, world.catalog.search_versions, filter_text=text)
        assert [v.reference for v in found.items] == ["churn:1.0.0"], text
        stranger = context("eve", Role.VIEWER, project="other")
        assert world.read(stranger, world.catalog.search_versions, filter_text=text).items == ()
    missing = world.read(OWNER, world.catalog.search_versions, filter_text="run_id is null")
    assert [v.reference for v in missing.items] == ["other:1.0.0"]


@pytest.mark.req("V3", "V4")
@pytest.mark.parametrize("column", ["run_id", "source", "code_commit", "identity"])
@pytest.mark.hostile("changed-underneath")
def test_a_changed_origin_is_found(world: SourcesWorld, column: str) -> None:
    """Whoever changes where a version comes from behind the registry's back is found out by fsck."""
    version = world.made(f"runs:/{trained(world)}/model")
    assert world.catalog.fsck(world.desk, SYSTEM_CONTEXT).ok
    changed = update(versions).where(versions.c.id == bindparam("which")).values({column: "another"})
    world.do(OWNER, lambda act: act.tx.run(changed, which=version.id))
    report = world.catalog.fsck(world.desk, SYSTEM_CONTEXT)
    assert not report.ok
    assert column in str(report)


@pytest.mark.req("T3")
@pytest.mark.hostile("races")
def test_registrations_at_once_get_numbers_of_their_own(world: SourcesWorld) -> None:
    """Many registrations of one run at the same moment are as many versions, with numbers and semvers in a
    row.
    """
    run_id = trained(world)
    world.model()
    request = VersionRequest(model=CHURN, source=f"runs:/{run_id}/model")
    prepared = world.sources.prepare(world.desk, OWNER, request)
    waiting = [world.desk.write(OWNER, world.sources.register, prepared) for _ in range(8)]
    made = [future.result().version for future in waiting]
    assert sorted(version.number for version in made) == list(range(1, 9))
    assert len({version.semver for version in made}) == 8


@pytest.mark.req("T3", "V4")
def test_a_model_without_a_run_has_its_own_tags(world: SourcesWorld) -> None:
    """A model that was logged without a run says itself which code made it."""
    model_id = world.logged(tags=[Tag(key, value) for key, value in GIT.items()])
    version = world.made(f"models:/{model_id}")
    assert version.provenance is not None
    assert version.provenance.run_id is None
    assert version.provenance.code is not None
    assert version.provenance.code.commit == COMMIT
    assert version.provenance.user == "ann"


# --------------------------------------------------------------------------------------- life after the run


@pytest.mark.req("T3", "T4")
def test_a_version_outlives_its_run(world: SourcesWorld) -> None:
    """Deleting a run, its files, its logged model and its experiment takes nothing from the version: fsck
    finds all its bytes, and they are read as before."""
    experiment = world.do(OWNER, world.tracking.create_experiment, "default", "doomed").experiment_id
    run_id = world.run(GIT, experiment=experiment)
    world.keep(run_id, FILES)
    model_id = world.logged(run_id, experiment=experiment, files={"MLmodel": MLMODEL, "w.skops": b"w"})
    by_run, by_model = world.made(f"runs:/{run_id}/model"), world.made(f"models:/{model_id}")
    for kind, owner in ((OwnerKind.RUN, run_id), (OwnerKind.LOGGED_MODEL, model_id)):
        world.do(OWNER, world.artifacts.delete, OwnedPlace(owner=Owner(kind, owner)))
    world.do(OWNER, world.logged_models.delete, model_id)
    world.do(OWNER, world.tracking.delete_run, run_id)
    world.do(OWNER, world.tracking.delete_experiment, experiment)
    for version in (by_run, by_model):
        assert world.get(version.reference) == version
        for file in version.files:
            assert digest_of(b"".join(world.blobs.open_verified(file.digest))) == file.digest
    report = world.catalog.fsck(world.desk, SYSTEM_CONTEXT)
    assert report.ok
    assert [v.number for v in world.read(OWNER, world.sources.versions_of_run, run_id)] == [2, 1]


def test_files_that_are_gone_become_no_version(world: SourcesWorld) -> None:
    """A file whose bytes are no longer stored stops the registration, by name."""
    run_id = trained(world)
    world.blobs.delete(digest_of(FILES["model.skops"]))
    with pytest.raises(errors.Conflict, match=r"model\.skops.*log the model again"):
        world.made(f"runs:/{run_id}/model")


@pytest.mark.hostile("changed-underneath")
def test_files_that_change_meanwhile_become_no_version(world: SourcesWorld) -> None:
    """When a run's files change between the look and the act, the act refuses, and the next one succeeds."""
    run_id = trained(world)
    request = VersionRequest(model=CHURN, source=f"runs:/{run_id}/model", create_model=True)
    prepared = world.sources.prepare(world.desk, OWNER, request)
    world.keep(run_id, {"model.skops": b"new weights"})
    with pytest.raises(errors.Conflict, match="register them again"):
        world.do(OWNER, world.sources.register, prepared)
    assert world.made(request.source).number == 1


# -------------------------------------------------------------------------------------------------- rights


@pytest.mark.req("G10")
def test_rights_on_both_sides_are_asked_for(world: SourcesWorld) -> None:
    """Whoever may not see the run, or not register, gets nothing: not from a run, a logged model or a
    version.
    """
    run_id = trained(world)
    model_id = world.logged(run_id)
    world.made(f"runs:/{run_id}/model")
    stranger = context("eve", Role.MAINTAINER, project="other")
    there = ModelName("other", "mine")
    with pytest.raises(errors.RunNotFound):
        world.made(f"runs:/{run_id}/model", there, stranger)
    with pytest.raises(errors.LoggedModelNotFound):
        world.made(f"models:/{model_id}", there, stranger)
    with pytest.raises(errors.NotFound):
        world.made(f"mlflow-artifacts:/0/{run_id}/artifacts/model", there, stranger)
    with pytest.raises(errors.ModelNotFound):
        world.made("mlflow-artifacts:/registered-models/default/churn/1", there, stranger)
    with pytest.raises(errors.ModelNotFound):
        world.made("models:/churn/1", there, stranger)  # of their own project
    with pytest.raises(errors.ModelNotFound):
        world.made(f"runs:/{run_id}/model", CHURN, stranger)
    with pytest.raises(errors.NotAllowed):
        world.made(f"runs:/{run_id}/model", CHURN, context("vic", Role.VIEWER))


def test_a_model_that_is_not_there_is_made_only_when_asked(world: SourcesWorld) -> None:
    """MLflow wants the model to be there first; our own door may make it."""
    run_id = trained(world)
    with pytest.raises(errors.ModelNotFound):
        world.made(f"runs:/{run_id}/model", create_model=False)
    world.model()
    assert world.made(f"runs:/{run_id}/model", create_model=False).number == 1


@pytest.mark.parametrize(
    ("field", "said"), [("run_id", "f" * 32), ("model_id", "m-" + "f" * 32), ("run_id", "\x00")]
)
def test_what_is_said_beside_the_address_must_agree(world: SourcesWorld, field: str, said: str) -> None:
    """A run or logged model that is named beside the address has to be the one that holds the files."""
    run_id = trained(world)
    model_id = world.logged(run_id)
    world.made(f"runs:/{run_id}/model")
    for source in (f"runs:/{run_id}/model", f"models:/{model_id}", "models:/churn/1"):
        with pytest.raises(errors.InvalidParameter) as caught:
            world.made(source, CHURN, OWNER, **{field: said})
        assert caught.value.details["field"] == field


@pytest.mark.req("T4")
@pytest.mark.hostile("other-places")
def test_nobody_claims_another_run(world: SourcesWorld) -> None:
    """Through our own door a run can be named, when it is there for the caller; a source cannot be."""
    run_id = trained(world)
    made = world.register(CHURN, b"w", provenance=Provenance(run_id=run_id, code=Code(commit=COMMIT)))
    assert made.version.provenance is not None
    assert made.version.provenance.run_id == run_id
    stranger = context("eve", Role.MAINTAINER, project="other")
    with pytest.raises(errors.RunNotFound):
        world.register("other/mine", b"w", stranger, provenance=Provenance(run_id=run_id))
    with pytest.raises(errors.LoggedModelNotFound):
        world.register(CHURN, b"w", provenance=Provenance(logged_model_id="m-" + "0" * 32))
    for claim in (Provenance(source="runs:/x/y"), Provenance(origin="churn:1.0.0")):
        with pytest.raises(errors.Invalid, match="noted by the registry"):
            world.register(CHURN, b"w", provenance=claim)


# ------------------------------------------------------------------------------------------------- prompts

PROMPT = {IS_PROMPT: "true", PROMPT_TEXT: "Summarise {{ text }}.\r\nBe brief.", "_mlflow_prompt_type": "text"}


@pytest.mark.req("T4")
def test_a_prompt_is_a_version_of_one_file(world: SourcesWorld) -> None:
    """The text of a prompt becomes the version's one file and cannot change; other tags can."""
    name = world.model(ModelName("default", "summary"), {IS_PROMPT: "true"})
    first = world.made("prompt-template", name, tags=PROMPT)
    again = world.made("prompt-template", name, tags=PROMPT)
    other = world.made("prompt-template", name, tags={**PROMPT, PROMPT_TEXT: "x" * 100_000})
    assert [file.path for file in first.files] == [PROMPT_FILE]
    assert b"".join(world.blobs.open_verified(first.files[0].digest)).decode() == PROMPT[PROMPT_TEXT]
    assert first.tags == PROMPT
    assert (again.number, again.tags[DUPLICATE_OF]) == (2, "summary:1.0.0")
    assert (other.number, len(other.tags[PROMPT_TEXT])) == (3, 100_000)
    changes: list[dict[str, Any]] = [
        {"set_tags": {PROMPT_TEXT: "another"}},
        {"delete_tags": (PROMPT_TEXT,)},
        {"set_tags": {IS_PROMPT: "false"}},
    ]
    for change in changes:
        with pytest.raises(errors.InvalidParameter, match="register a new version"):
            world.do(OWNER, world.catalog.change_version, parse_ref("summary:#1"), ModelChange(**change))
    changed = world.do(
        OWNER,
        world.catalog.change_version,
        parse_ref("summary:#1"),
        ModelChange(set_tags={"team": "docs", PROMPT_TEXT: PROMPT[PROMPT_TEXT]}),
    )
    assert changed.tags == {**PROMPT, "team": "docs"}


@pytest.mark.parametrize(
    ("tags", "source", "prompt_model"),
    [
        (PROMPT, "prompt-template", False),
        ({IS_PROMPT: "true"}, "prompt-template", True),
        (PROMPT, "file:///etc/passwd", True),
        (PROMPT, "/etc/passwd", True),
        ({IS_PROMPT: "false", PROMPT_TEXT: "x"}, "prompt-template", True),
    ],
)
@pytest.mark.req("T4")
def test_the_word_prompt_opens_no_door(
    world: SourcesWorld, tags: Mapping[str, str], source: str, prompt_model: bool
) -> None:
    """Saying that it is a prompt lets nobody past the check of the address, nor into a model that is none."""
    name = world.model(tags={IS_PROMPT: "true"} if prompt_model else {})
    with pytest.raises(errors.InvalidParameter):
        world.made(source, name, tags=dict(tags))


def test_a_prompt_is_not_copied(world: SourcesWorld) -> None:
    """A prompt is no source of a model's version."""
    name = world.model(ModelName("default", "summary"), {IS_PROMPT: "true"})
    world.made("prompt-template", name, tags=PROMPT)
    with pytest.raises(errors.InvalidParameter, match="is a prompt"):
        world.made("models:/summary/1")


# --------------------------------------------------------------------------------------------- the addresses


def test_addresses_of_this_server_lead_to_its_files(world: SourcesWorld) -> None:
    """The addresses that a client makes of a run's files all lead to the same version's files."""
    run_id = trained(world)
    model_id = world.logged(run_id)
    host = "registry.example:5000"
    path = f"0/{run_id}/artifacts/model"
    sources = [
        f"runs:/{run_id}/model",
        f"mlflow-artifacts:/{path}",
        f"mlflow-artifacts:///{path}",
        f"mlflow-artifacts://{host}/{path}",
        f"http://{host}/api/2.0/mlflow-artifacts/artifacts/{path}",
        f"https://{host}/api/2.0/mlflow-artifacts/artifacts/0/models/{model_id}/artifacts",
    ]
    made = [world.made(source, host=host) for source in sources]
    assert len({version.digest for version in made}) == 1
    for version in made:
        assert version.provenance is not None
        assert version.provenance.run_id == run_id
        assert version.provenance.source is not None
        place = parse_source(version.provenance.source)
        assert address(place) == version.provenance.source
