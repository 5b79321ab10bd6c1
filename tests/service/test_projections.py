"""Rows that were changed behind the events' back: each is found by fsck, and named."""

from typing import Any

import pytest
from sqlalchemy import text

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.answers import Altered
from modelkeep.core.catalog import Metric
from modelkeep.core.events import EventKind
from modelkeep.core.policy import ALONE
from modelkeep.core.values import ModelName, parse_ref
from modelkeep.service.audit import Audit
from modelkeep.service.projections import find_altered
from modelkeep.store.database import Database
from tests.service import catalog_world, promotion_world
from tests.service.catalog_world import CHURN, OWNER

pytestmark = pytest.mark.req("G8", "G9")

LOG = Audit()


def tamper(database: Database, statement: str, **binds: Any) -> None:
    """Run plain SQL, as somebody with the database's password could; it has to hit a row."""
    assert database.write(lambda tx: tx.run(text(statement), **binds)).result() > 0


@pytest.fixture
def registry(world: catalog_world.World) -> catalog_world.World:
    """A version with a metric and a parameter, one with a framework, and a deleted one; and an alias."""
    auc = Metric(name="auc", value=0.91, split="test")
    world.register(files={"m.onnx": b"one"}, metrics=(auc,), params={"lr": "0.1"})
    world.register(files={"m.onnx": b"two"}, metadata={"model": {"framework": "onnx"}})
    gone = world.register(files={"m.onnx": b"three"}).version
    world.do(OWNER, world.catalog.delete_version, parse_ref(gone.reference))
    world.do(OWNER, world.catalog.set_alias, CHURN, "best", parse_ref("churn:#1"))
    return world


@pytest.fixture
def history(database: Database) -> promotion_world.World:
    """Two versions promoted, the second taken back."""
    world = promotion_world.World(database, ALONE)
    world.person("aud", Role.AUDITOR)
    world.versions("1.0.0", "1.1.0")
    for semver in ("1.0.0", "1.1.0"):
        world.promote(semver)
    world.rollback(reason="it forgets people")
    return world


def altered(world: catalog_world.World) -> list[Altered]:
    """What fsck of a registry finds besides the bytes."""
    report = world.catalog.fsck(world.desk, OWNER)
    assert report.ok is (not report.altered)
    return list(report.altered)


def whats(world: promotion_world.World) -> list[tuple[str, str]]:
    """Where, and what, in a history."""
    found = find_altered(world.desk, world.context("dan"))
    return [(one.where, one.what) for one in found]


def test_versions_that_nobody_touched_are_not_altered(registry: catalog_world.World) -> None:
    """Whatever the verbs write agrees with the events they write, in a model that is no more as well."""
    assert altered(registry) == []
    registry.do(OWNER, registry.catalog.delete_model, CHURN)
    assert altered(registry) == []
    registry.register(files={"m.onnx": b"again"})
    assert altered(registry) == []


def test_a_history_that_nobody_touched_is_not_altered(history: promotion_world.World) -> None:
    """Promotions, a rollback, and a version that is deleted."""
    assert whats(history) == []
    history.promote("1.0.0", "archived")
    history.delete("1.1.0")
    assert whats(history) == []


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("update version_metrics set value = 0.99", "version_metrics[auc].value"),
        ("delete from version_metrics where name = 'auc'", "version_metrics[auc]"),
        ("update version_params set value = '9'", "version_params[lr].value"),
        ("update version_files set media_type = 'x'", "version_files[m.onnx].media_type"),
        ("update versions set created_by = 'eve' where number = 1", "versions[1].created_by"),
        ("update versions set document = replace(document, '0.91', '0.99')", "versions[1].document"),
        ("update versions set document = replace(document, '\"0.1\"', '\"9\"')", "versions[1].document"),
        ("update versions set tombstone = 'no' where number = 1", "versions[1].tombstone"),
        ("update versions set yanked = 'no' where number = 1", "versions[1].yanked"),
        ("update versions set status = 'deleted' where number = 1", "versions[1].status"),
        ("update aliases set number = 2", "aliases[best].number"),
    ],
)
def test_what_was_stated_of_a_version_cannot_be_changed(
    registry: catalog_world.World, statement: str, what: str
) -> None:
    """Metrics, parameters, files and the document itself are vouched for by the version's event."""
    tamper(registry.desk.database, statement)
    where = "churn" if what.startswith("aliases") else "churn:#1"
    assert (where, what) in [(one.where, one.what) for one in altered(registry)]


def test_what_is_recorded_and_what_is_found_are_both_told(registry: catalog_world.World) -> None:
    """So that whoever reads the report can put it right."""
    tamper(registry.desk.database, "update version_params set value = '9'")
    (one,) = altered(registry)
    assert one == Altered(where="churn:#1", what="version_params[lr].value", recorded="0.1", found="9")


def test_a_model_that_was_taken_away_is_missed(registry: catalog_world.World) -> None:
    """Deleting is an event and leaves a row; what has neither was removed by hand."""
    registry.do(OWNER, registry.catalog.create_model, ModelName("default", "empty"))
    tamper(registry.desk.database, "delete from models where name = 'empty'")
    (one,) = altered(registry)
    assert (one.where, one.what, one.found) == ("empty", "models", None)


def test_a_version_that_was_taken_away_is_missed(history: promotion_world.World) -> None:
    """So is a version whose rows were all removed."""
    history.version("1.2.0")
    tamper(history.database, "delete from version_files where version_id like '%churn_3'")
    tamper(history.database, "delete from versions where number = 3")
    assert whats(history) == [("churn:#3", "versions[3]")]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("update stage_intervals set actor = 'eve' where number = 1", "stage_intervals[{first}].actor"),
        ("update stage_intervals set reason = 'fine' where number = 1", "stage_intervals[{first}].reason"),
        ("delete from stage_intervals where number = 1", "stage_intervals[{first}]"),
        ("update occupancy set since_at = 'x' where number = 1", "occupancy[1].since_at"),
        ("delete from occupancy where number = 1", "occupancy[1]"),
        ("update versions set tombstone = null where number = 2", "versions[2].tombstone"),
    ],
)
def test_history_and_places_are_held_against_the_events(
    history: promotion_world.World, statement: str, what: str
) -> None:
    """Who stands in production, who put it there and why, and what was taken back."""
    first = history.events(EventKind.STAGE_MOVED)[0].sequence
    tamper(history.database, statement)
    assert what.format(first=first) in [one[1] for one in whats(history)]


def test_the_occupant_of_production_cannot_be_exchanged(history: promotion_world.World) -> None:
    """Both the one that ought to stand there and the one that does are named."""
    history.version("1.2.0")
    tamper(history.database, "update occupancy set number = 3 where stage = 'production'")
    assert whats(history) == [("churn:#1", "occupancy[1]"), ("churn:#3", "occupancy[3]")]


def test_a_head_that_was_kept_shows_a_tail_that_was_cut_off(history: promotion_world.World) -> None:
    """Removing the newest event together with the stored head leaves a chain that is whole in itself."""
    context = history.context("aud")
    report = LOG.verify(history.desk, context).report
    kept = f"{report.events}:{report.head}"
    assert LOG.verify(history.desk, context, kept).intact
    history.version("1.2.0")
    assert LOG.verify(history.desk, context, kept).intact  # an older head is still part of it
    newest = report.events + 1
    for cut in (newest, newest - 1):
        tamper(history.database, "delete from events where sequence = :which", which=cut)
        tamper(
            history.database,
            "update chain_head set sequence = :before,"
            " link = (select link from events where sequence = :before)",
            before=cut - 1,
        )
    assert LOG.verify(history.desk, context).intact
    with pytest.raises(errors.BrokenChain, match="cut off") as caught:
        LOG.verify(history.desk, context, kept)
    assert caught.value.details["sequence"] == report.events


def test_a_head_of_another_chain_is_refused(history: promotion_world.World) -> None:
    """The number alone does not do, and text that is no head is said to be none."""
    context = history.context("aud")
    report = LOG.verify(history.desk, context).report
    with pytest.raises(errors.BrokenChain, match="another link"):
        LOG.verify(history.desk, context, f"{report.events - 1}:{report.head}")
    with pytest.raises(errors.BrokenChain, match="another link"):
        LOG.verify(history.desk, context, f"0:{report.head}")
    for wrong in ("", "7", report.head, f"{report.events}:{report.head[:-1]}", f"-1:{report.head}"):
        with pytest.raises(errors.Invalid, match="SEQ:HASH"):
            LOG.verify(history.desk, context, wrong)
