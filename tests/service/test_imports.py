"""Moving a registry in: everything as it was, once, however often it breaks, and only by an admin."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.client.move_report import MoveReport
from modelkeep.client.moving_models import Mover
from modelkeep.core import errors
from modelkeep.core.access import Caller
from modelkeep.core.events import EventKind
from modelkeep.core.imports import ExperimentItem, ImportAnswer, ImportBatch, Kind, RunItem, State
from modelkeep.core.tracking import LifecycleStage, RunStatus, Tag
from modelkeep.core.values import Actor, ModelName, parse_ref
from modelkeep.service.act import Context
from modelkeep.service.house import House
from modelkeep.service.imports import Prepared
from modelkeep.store.artifacts import OwnerKind
from tests.properties.kept_answers import KeptAnswers
from tests.service.moving_world import NOW, Broken, Fuse, HouseTarget, MemorySource, Shape, filled
from tests.web.world import opened

pytestmark = pytest.mark.req("T5")
ROOT = Context(caller=Caller(actor=Actor(name="root"), owner=True))
MODEL = ModelName("default", "My Model")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A whole house over an empty folder."""
    with opened(tmp_path) as made:
        yield made


def move(house: House, source: MemorySource, **options: object) -> MoveReport:
    """One whole import."""
    return Mover(source, HouseTarget(house, ROOT), **options).run()  # type: ignore[arg-type]  # words of its own


def test_everything_is_as_it_was(house: House) -> None:
    """Ids, times, users, numbers, stages, labels, histories, files and the bin are those of the source."""
    report = move(house, filled())
    assert report.whole, report
    read = house.desk.read
    experiment = read(ROOT, house.tracking.get_experiment, "7")
    assert (experiment.name, experiment.creation_time, experiment.last_update_time) == ("churn", NOW, NOW + 5)
    assert read(ROOT, house.tracking.get_experiment, "8").lifecycle_stage is LifecycleStage.DELETED
    run = read(ROOT, house.tracking.get_run, f"{3:032x}")
    assert (run.info.user_id, run.info.start_time, run.info.end_time) == ("ann", NOW + 2, NOW + 100)
    assert (run.info.status, run.info.run_name) == (RunStatus.FINISHED, "run 2")
    assert (run.params, run.tags) == ((Tag("lr", "2"),), (Tag("k", "v"),))
    history = read(ROOT, house.tracking.metric_history, run.info.run_id, "loss").items
    assert [(p.step, p.value) for p in history] == [(step, 1 / (step + 1)) for step in range(14)]
    odd = read(ROOT, house.tracking.metric_history, run.info.run_id, "odd").items
    assert math.isnan(odd[0].value)
    assert [p.value for p in odd[1:]] == [math.inf, -1.5]
    gone = read(ROOT, house.tracking.get_run, f"{4:032x}")
    assert gone.info.lifecycle_stage is LifecycleStage.DELETED
    versions = read(ROOT, house.catalog.list_versions, MODEL).items
    assert [(v.number, v.stage, v.created_by, v.tags["n"]) for v in versions] == [
        (4, "none", "bob", "3"), (2, "staging", "bob", "2"), (1, "production", "bob", "1"),
    ]  # fmt: skip
    assert [int(v.created_at.timestamp() * 1000) for v in versions] == [NOW + 3, NOW + 2, NOW + 1]
    model = read(ROOT, house.catalog.get_model, MODEL)
    assert (model.description, model.tags, int(model.updated_at.timestamp() * 1000)) == (
        "Who leaves.", {"a": "b"}, NOW + 50,
    )  # fmt: skip
    assert read(ROOT, house.catalog.get_version, parse_ref("My Model@champion")).number == 1
    assert versions[0].provenance is not None
    assert versions[0].provenance.run_id == f"{1:032x}"


def test_the_log_says_where_it_came_from(house: House) -> None:
    """Events are of now and of whoever imported; what was before stands in their bodies; fsck agrees."""
    move(house, filled())
    told = [
        stored.event
        for stored in house.desk.read(ROOT, lambda act: act.tx.events.after(0, limit=1_000))
        if "imported" in stored.event.body
    ]
    assert {event.body["imported"]["source"] for event in told} == {"memory://registry"}
    assert all(event.actor.name == "root" and event.at.timestamp() * 1000 > NOW + 1e9 for event in told)
    made = next(event for event in told if event.kind is EventKind.VERSION_REGISTERED)
    assert made.body["imported"]["created"] == NOW + 1
    assert made.body["imported"]["by"] == "bob"
    report = house.catalog.fsck(house.desk, ROOT)
    assert report.ok, report


def test_no_step_of_an_import_leaves_an_old_answer(house: House) -> None:
    """What the MLflow door keeps of a model is true after each batch, the one that closes the model too."""
    kept = KeptAnswers()

    class Checked(HouseTarget):
        def import_batch(self, batch: ImportBatch) -> ImportAnswer:
            answer = super().import_batch(batch)
            kept.check(house.desk.database)
            return answer

    Mover(filled(), Checked(house, ROOT)).run()


def test_once_more_changes_nothing(house: House) -> None:
    """The same import again finds everything there, writes no event, and compares."""
    move(house, filled())
    before = house.desk.read(ROOT, lambda act: len(act.tx.events.after(0, limit=1_000)))
    report = move(house, filled())
    assert report.whole
    assert all(one.new == 0 for one in report.kinds.values())
    assert house.desk.read(ROOT, lambda act: len(act.tx.events.after(0, limit=1_000))) == before


@settings(max_examples=15)
@given(after=st.integers(0, 40), side=st.sampled_from(["source", "target"]))
def test_an_import_that_broke_off_goes_on(
    tmp_path_factory: pytest.TempPathFactory, after: int, side: str
) -> None:
    """Wherever it breaks, the answer of a batch lost or not, the same again completes it."""
    with opened(tmp_path_factory.mktemp("house")) as house:
        fuses = {name: Fuse(after if side == name else None) for name in ("source", "target")}
        with contextlib.suppress(Broken):
            Mover(filled(fuse=fuses["source"]), HouseTarget(house, ROOT, fuses["target"])).run()
        report = move(house, filled())
        assert report.whole, report
        whole = house.catalog.fsck(house.desk, ROOT)
        assert whole.ok, whole
        numbers = [v.number for v in house.desk.read(ROOT, house.catalog.list_versions, MODEL).items]
        assert numbers == [4, 2, 1]


def test_what_changed_at_the_source_is_told(house: House) -> None:
    """A run that was logged to after it came is not taken for the same."""
    move(house, filled())
    source = filled()
    source.points[f"{1:032x}"].append(("late", ((NOW, 0, 1.0),)))
    report = move(house, source)
    assert not report.whole
    assert [one.id for one in report.differing] == [f"{1:032x}"]


def test_a_dry_run_writes_nothing(house: House) -> None:
    """A dry run reads and checks everything, and leaves no trace."""
    report = move(house, filled(), dry_run=True)
    assert report.kinds[Kind.RUN].found == 4
    assert report.files == 10
    assert house.desk.read(ROOT, lambda act: len(act.tx.events.after(0, limit=1_000))) == 0


def test_names_that_cannot_be_are_told_or_changed(house: House) -> None:
    """A registered model whose name cannot be here stays out and is told, and comes under another one."""
    source = filled()
    source.all_models[0] = type(source.all_models[0])(name="ünï", creation_time=NOW, last_update_time=NOW)
    source.all_versions["ünï"] = [
        type(v)(model="ünï", number=v.number, creation_time=NOW, last_update_time=NOW, source=v.source)
        for v in source.all_versions.pop("My Model")
    ]
    report = move(house, source)
    assert [left.id for left in report.left_out if left.kind is Kind.MODEL] == ["ünï"]
    assert report.kinds[Kind.VERSION].left_out == 3
    again = move(house, source, rename={"ünï": "uni"})
    assert again.whole, again.left_out
    assert [(one.id, one.ours) for one in again.mapped] == [("ünï", "uni")]


def test_a_file_of_another_size_stays_out(house: House) -> None:
    """A file that has more or fewer bytes than was said is not taken, and the run comes without it."""
    source = filled(Shape(runs=1, versions=0))
    source.sizes["model/w.bin"] = 3
    report = move(house, source)
    assert any("is said to have 3 bytes" in one.why for one in report.changed)
    files = house.desk.read(ROOT, lambda act: house.imports.files(act, OwnerKind.RUN, f"{1:032x}").files)
    assert [file.path for file in files] == ["empty.txt"]


def test_taken_ids_are_given_anew_or_refused(house: House) -> None:
    """An experiment's number that is taken becomes another one; a run's id that is taken is refused."""
    house.desk.do(ROOT, house.tracking.create_experiment, "default", "mine")
    batch = ImportBatch(
        source="a", experiments=(ExperimentItem(id="1", name="theirs", creation_time=NOW),),
        runs=(RunItem(id="r" * 32, experiment="1", start_time=NOW),),
    )  # fmt: skip
    answer = house.desk.do(ROOT, house.imports.apply, batch, Prepared(missing=frozenset()))
    assert [(one.kind, one.ours, one.state) for one in answer.items] == [
        (Kind.EXPERIMENT, "2", State.NEW), (Kind.RUN, "r" * 32, State.NEW),
    ]  # fmt: skip
    other = ImportBatch(
        source="b", experiments=(ExperimentItem(id="5", name="others", creation_time=NOW),),
        runs=(RunItem(id="r" * 32, experiment="5", start_time=NOW),),
    )  # fmt: skip
    refused = house.desk.do(ROOT, house.imports.apply, other, Prepared(missing=frozenset())).items[-1]
    assert (refused.state, refused.code) == (State.REFUSED, "CONFLICT")
    elsewhere = ImportBatch(source="a", project="other")
    with pytest.raises(errors.Conflict, match="project default"):
        house.desk.do(ROOT, house.imports.apply, elsewhere, Prepared(missing=frozenset()))


def test_only_an_admin_imports(house: House) -> None:
    """Whoever is no admin can neither send a batch, nor bytes, nor look."""
    nobody = Context(caller=Caller(actor=Actor(name="eve")))
    with pytest.raises(errors.NotAllowed):
        house.desk.do(nobody, house.imports.apply, ImportBatch(source="a"), Prepared(missing=frozenset()))
    with pytest.raises(errors.NotAllowed):
        house.imports.prepare(house.desk, nobody, ImportBatch(source="a"))
    with pytest.raises(errors.NotAllowed):
        house.desk.read(nobody, house.imports.summary, "a")
    with pytest.raises(errors.NotAllowed):
        house.desk.read(nobody, house.imports.prepare_bytes, "sha256:" + "0" * 64, 1)
