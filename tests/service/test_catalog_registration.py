"""Registering a version: drafts, bytes that come in pieces, the number and its reasons, what is refused.

How numbers follow from facts in general is tested in the core; here it is one registry, whole.
"""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.catalog import Bump, DraftSpec, DraftStatus, FileEntry, Metric
from modelkeep.core.events import EventKind
from modelkeep.core.values import Digest, ModelName, parse_ref
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.store.database import Database
from modelkeep.store.events import verify
from tests.service.catalog_world import (
    CHURN,
    NARROWER,
    OWNER,
    SIGNATURE,
    WIDER,
    World,
    context,
    digest_of,
    entry_of,
)

pytestmark = pytest.mark.req("V2", "V3")

BOB = context("bob", Role.CONTRIBUTOR)
EVE = context("eve", Role.CONTRIBUTOR)


def test_the_first_version_is_whole(world: World) -> None:
    """What was announced is what everybody reads, under number 1 and 1.0.0."""
    metric = Metric(name="auc", value=0.94, split="test")
    made = world.register(
        files={"model.onnx": b"abc", "config/labels.json": b"[]"},
        signature=SIGNATURE,
        metrics=(metric,),
        params={"depth": "6"},
        metadata={"model": {"framework": "xgboost"}},
        description="first",
        tags={"team": "risk"},
    )

    version = made.version
    assert made.created
    assert (version.number, version.semver, version.parent, version.stage) == (1, "1.0.0", None, "none")
    assert [entry.path for entry in version.files] == ["config/labels.json", "model.onnx"]
    assert version.size_bytes == 5
    assert version.metrics == (metric,)
    assert version.metadata["model"] == {"framework": "xgboost"}
    assert world.get("churn:1.0.0") == version
    model = world.read(OWNER, world.catalog.get_model, CHURN)
    assert (model.versions, model.latest, model.owner) == (1, "1.0.0", "ann")


def test_a_draft_is_seen_by_its_author_alone(world: World) -> None:
    """Until it is finalized nobody else finds the draft, and nobody at all the version or the model."""
    draft = world.begin(CHURN, {"model.onnx": b"abc"}, BOB)

    assert world.read(BOB, world.catalog.get_draft, draft.id) == draft
    for method in (world.catalog.get_draft, world.catalog.finalize, world.catalog.cancel_draft):
        with pytest.raises(errors.DraftNotFound):
            world.do(OWNER, method, draft.id)
    with pytest.raises(errors.ModelNotFound):
        world.get("churn:1.0.0", BOB)
    assert world.read(OWNER, world.catalog.list_models).items == ()


@pytest.mark.parametrize(
    ("data", "more", "semver", "reason"),
    [
        (b"other", {"signature": SIGNATURE}, "1.1.0", "weights"),
        (b"other", {"signature": WIDER}, "1.1.0", "plan"),
        (b"other", {"signature": NARROWER}, "2.0.0", "age"),
        (b"weights", {"signature": SIGNATURE, "params": {"depth": "7"}}, "1.0.1", "metadata"),
    ],
)
def test_the_number_follows_from_what_changed(
    world: World, data: bytes, more: dict[str, Any], semver: str, reason: str
) -> None:
    """New weights are minor, a lost input major, another statement about the same bytes a patch; with the
    reason."""
    world.register(data=b"weights", signature=SIGNATURE)

    made = world.register(data=data, **more)

    assert (made.version.semver, made.version.parent, made.created) == (semver, 1, True)
    assert any(reason in sentence for sentence in made.reasons)
    assert made.version.bump_reasons == made.reasons


def test_equal_bytes_are_pointed_out_and_not_registered_twice(world: World) -> None:
    """The same file again is the version that is there, and no number is used up."""
    first = world.register(signature=SIGNATURE, metrics=(Metric(name="auc", value=0.9),))

    again = world.register(signature=SIGNATURE)

    assert not again.created
    assert again.version == first.version
    assert "1.0.0" in again.reasons[0]
    assert world.register(data=b"other", signature=SIGNATURE).version.number == 2


def test_an_explicit_number_below_the_inferred_one_needs_a_reason(world: World) -> None:
    """It is refused with the reasons before a byte is sent; with a reason it is given, and the reason is
    kept."""
    world.register(signature=SIGNATURE)

    with pytest.raises(errors.SemverTooLow) as refusal:
        world.begin(CHURN, {"model.onnx": b"new"}, signature=NARROWER, semver="1.0.1")
    assert refusal.value.details["inferred"] == "2.0.0"
    made = world.register(data=b"new", signature=NARROWER, semver="1.0.1", override_semver="nobody uses age")

    assert made.version.semver == "1.0.1"
    assert any("nobody uses age" in reason for reason in made.version.bump_reasons)
    event = world.read(OWNER, lambda act: act.tx.events.before(limit=1, model="churn"))[0].event
    assert (event.kind, event.reason) == (EventKind.VERSION_REGISTERED, "nobody uses age")


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"semver": "1.0.0"}, errors.VersionExists),
        ({"semver": "01.0.0"}, errors.InvalidSemver),
        ({"parent": "7.0.0"}, errors.VersionNotFound),
        ({"parent": "other:1.0.0"}, errors.InvalidReference),
        ({"metrics": (Metric(name="auc", value=float("nan")),)}, errors.InvalidMetric),
        ({"metrics": (Metric(name="a", value=1.0), Metric(name="a", value=1.0))}, errors.InvalidMetric),
        ({"metadata": {"performance": {"metrics": {"a": 0.8}}}, "metrics": (Metric(name="a", value=0.9),)},
         errors.InvalidMetric),
        ({"metadata": {"model": {"framework": 3}}}, errors.InvalidMetadata),
        ({"tags": {"a\x00b": "x"}}, errors.Invalid),
        ({"params": {"k": "x" * 9_000}}, errors.LimitExceeded),
        ({"description": "x" * 20_000}, errors.LimitExceeded),
        ({"override_semver": "  "}, errors.Invalid),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_changes_nothing(
    world: World, spec: dict[str, Any], error: type[Exception]
) -> None:
    """Each bad statement has its own error, and neither draft nor event comes of it."""
    world.register(signature=SIGNATURE)
    head = world.read(OWNER, lambda act: act.tx.events.head())

    with pytest.raises(error):
        world.begin(CHURN, {"model.onnx": b"new"}, **spec)

    assert world.read(OWNER, lambda act: act.tx.events.head()) == head


@pytest.mark.parametrize(
    "files",
    [
        (),
        (entry_of("../x", b""),),
        (entry_of("/etc/passwd", b""),),
        (entry_of("a/b", b""), entry_of("A/B", b"x")),
        (FileEntry(path="m", size_bytes=-1, digest=digest_of(b"")),),
        (FileEntry(path="m", size_bytes=2**60, digest=digest_of(b"")),),
        (FileEntry(path="m", size_bytes=1, digest=Digest("sha256:12")),),
    ],
)
def test_a_list_of_files_that_cannot_be_is_refused(world: World, files: tuple[FileEntry, ...]) -> None:
    """No file, paths out of the folder, two names for one file, impossible sizes, shortened digests."""
    with pytest.raises(errors.Invalid):
        world.do(OWNER, world.catalog.begin_draft, CHURN, DraftSpec(files=files))


@pytest.mark.parametrize("name", ["", "a/b", "-x", "chürn", "a\nb", "x" * 129, "ch\u0430rn"])
def test_a_name_that_is_no_name_is_refused(world: World, name: str) -> None:
    """Control characters, slashes, letters that look alike and names that are too long make no model."""
    with pytest.raises(errors.InvalidName):
        world.begin(ModelName("default", name), {"m": b"x"})


def test_a_name_that_looks_like_another_is_refused(world: World) -> None:
    """`Churn` beside `churn` would be read as the same."""
    world.register("churn")

    with pytest.raises(errors.ModelExists, match="churn"):
        world.begin("Churn", {"m": b"x"})


def test_metrics_and_signature_of_the_metadata_are_the_versions(world: World) -> None:
    """What stands in the metadata need not be said beside it, and both together are one list."""
    metadata = {
        "performance": {"metrics": {"test": {"auc": 0.9}}},
        "signature": {"inputs": {"age": "int64"}, "outputs": {"p": "float64"}},
    }
    version = world.register(metadata=metadata, metrics=(Metric(name="f1", value=0.8),)).version

    assert [(m.name, m.split, m.value) for m in version.metrics] == [("auc", "test", 0.9), ("f1", None, 0.8)]
    assert version.signature is not None
    assert version.signature.inputs[0].name == "age"


# ------------------------------------------------------------------------------------------------------ bytes


def breaking_off(*chunks: bytes) -> Iterator[bytes]:
    """A sender whose connection breaks."""
    yield from chunks
    raise ConnectionResetError


def test_an_upload_that_breaks_off_goes_on_where_it_stopped(world: World) -> None:
    """What came is kept and known; an upload from elsewhere is told the right place."""
    draft = world.begin(CHURN, {"model.onnx": b"0123456789"})
    plan = world.do(OWNER, world.catalog.prepare_upload, draft.id, "model.onnx")

    with pytest.raises(ConnectionResetError):
        world.catalog.store_bytes(plan, 0, breaking_off(b"0123"))
    assert world.read(OWNER, world.catalog.get_draft, draft.id).files[0].offset == 4
    assert world.catalog.store_bytes(plan, 4, [b"45"]).offset == 6
    with pytest.raises(errors.OffsetMismatch) as wrong:
        world.catalog.store_bytes(plan, 0, [b"0123456789"])
    assert wrong.value.details["offset"] == 6
    with pytest.raises(errors.Conflict, match=r"model\.onnx"):
        world.do(OWNER, world.catalog.finalize, draft.id)

    done = world.catalog.store_bytes(plan, 6, [b"6789"])
    assert (done.present, done.offset) == (True, 10)
    assert world.do(OWNER, world.catalog.finalize, draft.id).created


def test_bytes_that_are_not_those_announced_are_thrown_away(world: World) -> None:
    """The upload begins anew, and the right bytes are taken."""
    draft = world.begin(CHURN, {"model.onnx": b"right"})
    plan = world.do(OWNER, world.catalog.prepare_upload, draft.id, "model.onnx")

    with pytest.raises(errors.DigestMismatch):
        world.catalog.store_bytes(plan, 0, [b"wrong"])
    with pytest.raises(errors.LimitExceeded):
        world.catalog.store_bytes(plan, 0, [b"right and more"])

    assert not world.read(OWNER, world.catalog.get_draft, draft.id).files[0].present
    again = world.do(OWNER, world.catalog.prepare_upload, draft.id, "model.onnx")
    assert world.catalog.store_bytes(again, again.offset, [b"right"]).present


def test_an_empty_file_is_a_file(world: World) -> None:
    """Nothing but its name is to be sent, and that is done."""
    made = world.register(files={"model.onnx": b"x", "__init__.py": b""})

    assert [(entry.path, entry.size_bytes) for entry in made.version.files] == [
        ("__init__.py", 0),
        ("model.onnx", 1),
    ]


def test_a_file_that_the_draft_does_not_announce_is_not_taken(world: World) -> None:
    """Neither a path out of the folder nor any other name."""
    draft = world.begin(CHURN, {"model.onnx": b"x"})

    for path in ("other", "../model.onnx", ""):
        with pytest.raises(errors.FileNotInVersion):
            world.do(OWNER, world.catalog.prepare_upload, draft.id, path)


def test_saying_it_again_is_the_same_draft(world: World) -> None:
    """Whoever lost the connection repeats the whole registration and sends only what is missing."""
    files = {"a.onnx": b"aaaa", "b.json": b"{}"}
    draft = world.begin(CHURN, files, tags={"x": "1"})
    plan = world.do(OWNER, world.catalog.prepare_upload, draft.id, "a.onnx")
    world.catalog.store_bytes(plan, 0, [b"aaaa"])

    again = world.begin(CHURN, dict(reversed(files.items())), tags={"x": "1"})

    assert again.id == draft.id
    assert [(entry.path, entry.present) for entry in again.files] == [("a.onnx", True), ("b.json", False)]
    assert world.begin(CHURN, files, tags={"x": "2"}).id != draft.id
    assert world.begin(CHURN, files, BOB, tags={"x": "1"}).id != draft.id


def test_what_is_stored_need_not_be_sent_again_by_those_who_may_pull_it(world: World) -> None:
    """The draft of somebody else in the same project is ready at once."""
    world.register(data=b"shared")

    draft = world.begin("other", {"copy.onnx": b"shared"}, BOB)

    assert draft.files[0].present
    assert world.do(BOB, world.catalog.finalize, draft.id).version.size_bytes == 6


def test_nobody_learns_by_a_digest_what_others_keep(world: World) -> None:
    """Who may not pull a version with these bytes has to send them, and cannot tell whether they were there;
    knowing the digest, or sending something else first, does not help."""
    world.register("secret/model", data=b"shared")
    eve = context("eve", Role.CONTRIBUTOR, project="open")

    draft = world.begin("open/mine", {"m": b"shared"}, eve)
    unknown = world.begin("open/mine", {"m": b"unheard"}, eve)
    assert [entry.present for entry in draft.files] == [entry.present for entry in unknown.files] == [False]
    plan = world.do(eve, world.catalog.prepare_upload, draft.id, "m")
    with pytest.raises(errors.DigestMismatch):
        world.catalog.store_bytes(plan, 0, [b"guess!"])
    with pytest.raises(errors.Conflict):
        world.do(eve, world.catalog.finalize, draft.id)

    world.catalog.store_bytes(plan, 0, [b"shared"])
    assert world.do(eve, world.catalog.finalize, draft.id).created


# ------------------------------------------------------------------------------------------------------- ends


def test_finalizing_twice_is_finalizing_once(world: World) -> None:
    """Whoever lost the answer asks again and gets the same one."""
    draft = world.begin(CHURN, {"model.onnx": b"x"})
    world.send(draft, {"model.onnx": b"x"})

    first = world.do(OWNER, world.catalog.finalize, draft.id)
    again = world.do(OWNER, world.catalog.finalize, draft.id)

    assert again == first
    closed = world.read(OWNER, world.catalog.get_draft, draft.id)
    assert (closed.status, closed.number, closed.files[0].present) == (DraftStatus.READY, 1, True)
    with pytest.raises(errors.DraftClosed):
        world.do(OWNER, world.catalog.cancel_draft, draft.id)
    with pytest.raises(errors.DraftClosed):
        world.do(OWNER, world.catalog.prepare_upload, draft.id, "model.onnx")
    world.do(OWNER, world.catalog.delete_version, parse_ref("churn:1.0.0"))
    with pytest.raises(errors.DraftClosed, match="deleted"):
        world.do(OWNER, world.catalog.finalize, draft.id)


def test_a_cancelled_draft_takes_nothing_more(world: World) -> None:
    """It cannot be finalized, and cancelling it again is no error."""
    draft = world.begin(CHURN, {"model.onnx": b"x"})
    world.do(OWNER, world.catalog.cancel_draft, draft.id)
    world.do(OWNER, world.catalog.cancel_draft, draft.id)

    with pytest.raises(errors.DraftClosed):
        world.do(OWNER, world.catalog.finalize, draft.id)
    assert world.begin(CHURN, {"model.onnx": b"x"}).id != draft.id


def test_what_nobody_goes_on_with_is_swept(world: World) -> None:
    """A draft that was touched within the grace period stays; closed ones are forgotten after it."""
    old = world.begin(CHURN, {"model.onnx": b"old"})
    kept = world.begin(CHURN, {"model.onnx": b"kept"})
    world.register(data=b"done")
    world.clock.pass_by(hours=2)
    world.do(OWNER, world.catalog.prepare_upload, kept.id, "model.onnx")
    since = world.clock.now.replace(minute=0)

    assert world.do(SYSTEM_CONTEXT, world.catalog.sweep_drafts, since) == 1
    assert world.read(OWNER, world.catalog.get_draft, old.id).status is DraftStatus.CANCELLED
    assert world.read(OWNER, world.catalog.get_draft, kept.id).status is DraftStatus.OPEN
    later = world.clock.pass_by(hours=9)
    assert world.do(SYSTEM_CONTEXT, world.catalog.sweep_drafts, later) == 1
    with pytest.raises(errors.DraftNotFound):
        world.read(OWNER, world.catalog.get_draft, old.id)


def test_only_who_may_register_registers(world: World) -> None:
    """A viewer is told what is missing, a stranger that there is no such model, and rights are asked again at
    the end."""
    world.register()
    viewer, stranger = context("vic", Role.VIEWER), context("sid")

    with pytest.raises(errors.NotAllowed, match="register"):
        world.begin(CHURN, {"m": b"x"}, viewer)
    with pytest.raises(errors.ModelNotFound):
        world.begin(CHURN, {"m": b"x"}, stranger)
    draft = world.begin(CHURN, {"m": b"x"}, BOB)
    world.send(draft, {"m": b"x"}, BOB)
    with pytest.raises(errors.ModelNotFound):
        world.do(context("bob"), world.catalog.finalize, draft.id)
    with pytest.raises(errors.NotAllowed):
        world.do(context("bob", Role.VIEWER), world.catalog.finalize, draft.id)
    assert world.do(BOB, world.catalog.finalize, draft.id).created


def test_a_model_is_created_by_those_who_may(world: World) -> None:
    """Registering under a new name needs the right to create it."""
    bob = context("bob", Role.CONTRIBUTOR, model="churn", project="default")

    assert world.register("churn", who=bob).created
    with pytest.raises(errors.ModelNotFound):
        world.begin("other", {"m": b"x"}, bob)


def test_numbers_and_semvers_are_never_given_again(world: World) -> None:
    """After a version, and after the whole model, was deleted, the next one goes on counting."""
    world.versions(CHURN, 3)
    world.do(OWNER, world.catalog.delete_version, parse_ref("churn:1.2.0"))
    made = world.register(data=b"after", signature=SIGNATURE)
    assert (made.version.number, made.version.semver) == (4, "1.3.0")

    world.do(OWNER, world.catalog.delete_model, CHURN)
    again = world.register(data=b"reborn", signature=SIGNATURE)
    assert (again.version.number, again.version.semver, again.version.parent) == (5, "2.0.0", None)
    with pytest.raises(errors.VersionExists):
        world.begin(CHURN, {"m": b"x"}, semver="1.2.0", override_semver="please")


def test_who_asks_for_a_bump_gets_the_next_free_one(world: World) -> None:
    """`--bump` beyond the inferred one is free, and a line that is taken goes on at its end."""
    world.versions(CHURN, 2)

    assert world.register(data=b"a", signature=SIGNATURE, bump=Bump.MAJOR).version.semver == "2.0.0"
    old = world.register(data=b"b", signature=SIGNATURE, parent="1.0.0")
    assert (old.version.semver, old.version.parent) == ("1.2.0", 1)
    with pytest.raises(errors.SemverTooLow):
        world.begin(CHURN, {"m": b"x"}, signature=SIGNATURE, bump=Bump.PATCH)


@pytest.mark.parametrize("same", [True, False])
def test_two_who_finalize_at_once_get_numbers_of_their_own(world: World, same: bool) -> None:
    """Different bytes become two versions with two numbers, equal bytes one version that one of them made."""
    drafts = []
    for who in (BOB, EVE):
        files = {"m": b"same" if same else who.caller.actor.name.encode()}
        draft = world.begin(CHURN, files, who)
        world.send(draft, files, who)
        drafts.append((who, draft))
    barrier = threading.Barrier(2)

    def finalize(who: Any, draft: Any, out: list[Any]) -> None:
        barrier.wait()
        out.append(world.desk.do(who, world.catalog.finalize, draft.id))

    out: list[Any] = []
    threads = [threading.Thread(target=finalize, args=(who, draft, out)) for who, draft in drafts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    numbers = sorted(made.version.number for made in out)
    assert sorted(made.created for made in out) == ([False, True] if same else [True, True])
    assert numbers == ([1, 1] if same else [1, 2])


def test_every_registration_is_one_event_and_the_chain_holds(world: World, database: Database) -> None:
    """Number, semver, digest and reasons are in the log, which proves itself."""
    versions = world.versions(CHURN, 3)

    logged = world.read(OWNER, lambda act: act.tx.events.after(kind=EventKind.VERSION_REGISTERED))
    assert [entry.event.body["digest"] for entry in logged] == [version.digest for version in versions]
    assert verify(database).events == 4
