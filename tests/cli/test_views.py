"""What people read: each answer drawn once in a pipe, and tables on terminals of several widths."""

import io
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from modelkeep.cli import (
    access_views,
    catalog_views,
    endpoint_views,
    forecast_views,
    promotion_views,
    rollout_views,
    server_views,
)
from modelkeep.cli.catalog_views import View
from modelkeep.cli.doctor import Check as DoctorCheck
from modelkeep.cli.main import run
from modelkeep.cli.show import Screen, Text, duration, size
from modelkeep.client.answers import Pulled
from modelkeep.core import compare
from modelkeep.core.access import AuthMode, Grant, Principal, PrincipalKind, Role, TokenInfo
from modelkeep.core.answers import (
    Altered,
    EventPage,
    FileProblem,
    FsckReport,
    GateReport,
    GatewayStatus,
    History,
    Measured,
    PolicyRecord,
    Promotion,
    PromotionKind,
    Registration,
    Rollback,
    RolloutForecast,
    RolloutStatus,
    Ruling,
    VerifyReport,
    WhatWas,
    WhoAmI,
)
from modelkeep.core.catalog import Metric
from modelkeep.core.events import GENESIS, Event, EventKind, chain
from modelkeep.core.forecast import ArmOutlook, ContestOutlook, Flow, Healthy, Outlook, Regression, Share
from modelkeep.core.judgement import Missing, labels_seen
from modelkeep.core.label_outlook import LabelsNeeded, LabelsOutlook
from modelkeep.core.observation import (
    BandCounts,
    FieldMisses,
    LabelCounts,
    Labelled,
    SideCounts,
    VersionPhase,
)
from modelkeep.core.plan import JUDGED_LATER, Goal
from modelkeep.core.policy import GateResult, Mode, Outcome, read_policy
from modelkeep.core.promotion import Approval, Interval, MoveCause, PromotionRequest, Seen, Vote
from modelkeep.core.quality import Quality
from modelkeep.core.rollout import Attempt, Endpoint, Judgement, Rollout, RolloutState, Verdict, attempt_of
from modelkeep.core.routing import Epoch
from modelkeep.core.values import Actor
from tests.client.samples import CHURN, T0, digest, model, version

pytestmark = pytest.mark.req("U1")
ADA, BEN = Actor(name="ada"), Actor(name="ben", asserted=True)


def _drawn(*views: tuple[str, View], width: int | None = None, colour: bool = False) -> str:
    out = io.StringIO()
    for title, view in views:
        out.write(f"--- {title}\n")
        view(Screen(out, width=width, colour=colour))
        out.write("\n")
    return out.getvalue()


def _versions() -> list[Any]:
    first = version(
        1,
        "1.0.0",
        stage="production",
        aliases=("champion",),
        parent=None,
        digest=digest("e"),
        metrics=(Metric(name="accuracy", value=0.93, split="test"), Metric(name="f1", value=0.9)),
        params={"max_depth": "4"},
        created_at=T0 - timedelta(days=9),
    )
    return [first, version(), version(3, "2.0.0", stage="archived", tombstone="errors", aliases=())]


def test_the_catalog_reads_well(golden: Callable[[str, str], None]) -> None:
    """Models, versions, comparisons, differences and what registering and pulling say."""
    first, second, third = _versions()
    yanked = replace(second, yanked="trained on leaked labels")
    problem = FileProblem(
        digest=digest("c"),
        path="model.onnx",
        versions=("churn:1.1.0",),
        problem="has other bytes",
        actual=digest("0"),
    )
    damaged = VerifyReport(
        version="churn:1.1.0",
        digest=digest("a"),
        ok=False,
        files=2,
        size_bytes=4_321_987,
        problems=(problem,),
    )
    text = _drawn(
        ("ls", catalog_views.models([model()])),
        ("show churn", catalog_views.model(model())),
        ("ls churn", catalog_views.versions([third, second, first])),
        ("ls churn, one yanked", catalog_views.versions([yanked, first])),
        ("show churn:1.1.0", catalog_views.version(second)),
        ("yank", catalog_views.yanked(yanked)),
        ("unyank", catalog_views.yanked(second)),
        ("compare", catalog_views.comparison(compare.compare([first, second, third]))),
        ("diff", catalog_views.difference(compare.diff(first, second))),
        ("best", catalog_views.best(compare.best([first, second], "f1"))),
        (
            "register",
            catalog_views.registration(Registration(version=second, created=True, reasons=("minor: new",))),
        ),
        (
            "register again",
            catalog_views.registration(Registration(version=second, created=False, reasons=())),
        ),
        ("pull", catalog_views.pulled(Pulled(version=second, folder="here", fetched=1, already_there=1))),
        ("verify", catalog_views.verification(damaged)),
        ("alias", catalog_views.aliases(model())),
    )
    golden("cli_catalog.txt", text)


def _gates() -> tuple[GateResult, ...]:
    return (
        GateResult(
            gate="files_verified",
            outcome=Outcome.PASSED,
            mode=Mode.ENFORCE,
            why="every stored byte matches its digest",
            evidence=digest("1"),
        ),
        GateResult(
            gate="metric:f1",
            outcome=Outcome.FAILED,
            mode=Mode.ENFORCE,
            why="f1 is 0.9; at least 0.95 is required",
            fix="reach f1 at least 0.95",
            evidence=digest("2"),
        ),
        GateResult(
            gate="metadata",
            outcome=Outcome.INCONCLUSIVE,
            mode=Mode.WARN,
            why="the metadata lacks business.owner",
            fix="register a version whose metadata has these fields",
            evidence=digest("3"),
        ),
    )


def _request(**more: Any) -> PromotionRequest:
    seen = Seen(version=digest("a"), policy=digest("b"), evidence=digest("c"))
    made: dict[str, Any] = {
        "id": "req_1",
        "model": CHURN,
        "number": 2,
        "semver": "1.1.0",
        "digest": digest("a"),
        "to": "production",
        "reason": "AUC +0.4",
        "requested_by": ADA,
        "created_at": T0,
        "expires_at": T0 + timedelta(days=14),
        "gates": _gates()[:1],
        "approvals_needed": 2,
        "reviews": (
            Approval(
                by=BEN, vote=Vote.APPROVE, roles=("approver",), comment="Looks right.", seen=seen, at=T0
            ),
        ),
    }
    return PromotionRequest(**{**made, **more})


def _interval(**more: Any) -> Interval:
    made: dict[str, Any] = {
        "stage": "production",
        "number": 1,
        "semver": "1.0.0",
        "from_at": T0,
        "from_sequence": 7,
        "cause": MoveCause.ROLLOUT,
        "actor": "ada",
        "reason": "first",
        "request": "req_1",
        "rollout": "rol_1",
        "approved_by": ("ben",),
    }
    return Interval(**{**made, **more})


def test_promotion_reads_well(golden: Callable[[str, str], None]) -> None:
    """Gates with and without their explanation, requests, moves, history and the time machine."""
    first, second, _ = _versions()
    report = GateReport(
        version="churn:1.1.0",
        number=2,
        stage="production",
        ruling=Ruling.DENIED,
        gates=_gates(),
        policy="team",
        policy_version=3,
        policy_digest=digest("d"),
        incumbent=1,
        request=None,
        approved_by=("ben",),
        approvals_missing=1,
        approvals_roles=("approver", "admin"),
        obstacle=None,
        next="reach f1 at least 0.95",
    )
    event = Event(sequence=7, kind=EventKind.STAGE_MOVED, at=T0, actor=ADA, subject="churn:1.0.0")
    moved = Promotion(
        kind=PromotionKind.MOVED, version=second, stage="production", displaced=1, gates=_gates()[:1]
    )
    rolling = Promotion(
        kind=PromotionKind.ROLLOUT, version=second, stage="production", rollout="rol_1", endpoint="churn"
    )
    back = Rollback(
        kind=PromotionKind.MOVED,
        stage="production",
        version=first,
        from_number=2,
        from_semver="1.1.0",
        tombstoned=True,
    )
    stays = (
        _interval(number=2, semver="1.1.0", from_at=T0 + timedelta(hours=30), cause=MoveCause.PROMOTION),
        _interval(to_at=T0 + timedelta(hours=30), to_sequence=9),
    )
    was = WhatWas(
        version=first,
        stage="production",
        at=T0 + timedelta(hours=1),
        sequence=8,
        interval=stays[1],
        event=event,
        gates=_gates()[:1],
        approved_by=("ben",),
    )
    text = _drawn(
        ("gate", promotion_views.gate(report, False)),
        ("gate --explain", promotion_views.gate(report, True)),
        ("promote, moved", promotion_views.promoted(moved)),
        ("promote, rollout", promotion_views.promoted(rolling)),
        ("rollback", promotion_views.rolled_back(back)),
        ("request list", promotion_views.requests([_request(), _request(id="req_2", approvals_needed=0)])),
        ("request show", promotion_views.request(_request())),
        ("history", promotion_views.history(History(model=CHURN, intervals=stays))),
        (
            "history, with rollouts taken back",
            promotion_views.history(History(model=CHURN, intervals=stays[:1], attempts=_attempts())),
        ),
        ("whatwas", promotion_views.whatwas(was)),
        ("stages show", promotion_views.stages(model())),
    )
    golden("cli_promotion.txt", text)


def _attempts() -> tuple[Attempt, ...]:
    gone = _rollout(
        state=RolloutState.ROLLED_BACK,
        outcome="more callers fail than on stable",
        finished_at=T0 + timedelta(minutes=3),
    )
    stopped = _rollout(
        state=RolloutState.CANCELLED, outcome="by ada: wrong file", finished_at=T0 + timedelta(seconds=20)
    )
    found = [attempt_of(rollout) for rollout in (gone, stopped, _rollout())]
    return tuple(attempt for attempt in found if attempt is not None)


def _endpoint() -> Endpoint:
    return Endpoint(
        id="end_1",
        name="churn",
        model=CHURN,
        stage="production",
        key_header="x-user-id",
        stable=1,
        rollout="rol_1",
        created_at=T0,
        created_by="ada",
    )


def _rollout(**more: Any) -> Rollout:
    judgement = Judgement(
        verdict=Verdict.HOLD, why="not enough evidence yet from 120 new callers", p_value=0.4
    )
    made: dict[str, Any] = {
        "id": "rol_1",
        "endpoint": "churn",
        "model": CHURN,
        "stage": "production",
        "stable": 1,
        "stable_digest": digest("e"),
        "stable_semver": "1.0.0",
        "candidate": 2,
        "candidate_digest": digest("a"),
        "candidate_semver": "1.1.0",
        "plan": _endpoint().plan,
        "salt": "s",
        "state": RolloutState.STEPPING,
        "epoch": Epoch(2, 1),
        "weight_ppm": 100_000,
        "started_at": T0,
        "started_by": ADA,
        "reason": "AUC +0.4",
        "judgement": judgement,
        "candidate_counts": SideCounts(
            requests=240, errors=2, new_callers=120, callers_first_error=2, duration_ms_sum=900
        ),
        "stable_counts": SideCounts(requests=2_160, new_callers=1_080, duration_ms_sum=7_700),
        "notes": ("In row 0, field 'age': missing.",),
    }
    return Rollout(**{**made, **more})


def _status(rollout: Rollout | None) -> RolloutStatus:
    gateway = GatewayStatus(
        gateway="gw_1",
        url="http://127.0.0.1:5001",
        seen_at=T0,
        answering=True,
        epoch=Epoch(2, 1),
        candidate_ppm=100_000,
        in_step=True,
        misses=FieldMisses(refused={"age": 3}, fitted={"age": 1, "plan": 7}),
        phases={
            "1.0.0": VersionPhase.READY,
            "1.1.0": VersionPhase.READY,
            "0.9.0": VersionPhase.STARTING,
        },
    )
    return RolloutStatus(
        endpoint=_endpoint(),
        stable="1.0.0",
        previous=None,
        rollout=rollout,
        active=rollout is not None and not rollout.state.finished,
        gateways=(gateway,) if rollout else (),
    )


_ARM = ArmOutlook(
    version=None,
    weight_ppm=250_000,
    callers_per_s=5.0,
    taken_out=0.0,
    taken_out_at_most=0.015,
    named=0.005,
    losses=(Share(odds=2.0, share=0.98, half_s=7_300.0), Share(odds=4.0, share=1.0, half_s=800.0)),
    gains=(Share(odds=1 / 1.5, share=0.74), Share(odds=0.5, share=1.0)),
)
CONTEST = ContestOutlook(
    goal=Goal.LATENCY,
    alpha=0.05,
    comparisons=6,
    runs=200,
    error=0.069,
    arms=(_ARM, replace(_ARM, version="2.1.0", weight_ppm=50_000, callers_per_s=1.0)),
)


def _forecast(**more: Any) -> RolloutForecast:
    regression = Regression(
        odds=1.5,
        formula_s=3_400.0,
        seen=0.0375,
        tenth_s=None,
        half_s=None,
        nine_tenths_s=None,
        passed=0.9625,
        callers=10_135.0,
        callers_nine_tenths=10_956.1,
        requests=30_405.0,
        failed_callers=76.0,
    )
    gross = structs.replace(
        regression,
        odds=10.0,
        formula_s=76.2,
        seen=1.0,
        tenth_s=26.0,
        half_s=62.4,
        nine_tenths_s=131.0,
        passed=0.0,
    )
    healthy = Healthy(
        alpha=0.01,
        taken_back=0.0025,
        taken_back_at_most=0.0118,
        inconclusive=0.0,
        waiting=0.05,
        full_half_s=605.0,
        full_nine_tenths_s=755.0,
        done_half_s=920.0,
    )
    measured = Measured(
        rollouts=("rol_1",),
        from_at=T0,
        to_at=T0 + timedelta(hours=1),
        span_s=3_600.0,
        requests=216_000,
        callers=72_000,
        stable_callers=40_000,
        stable_failed=200,
        stable_failed_first=180,
        stable_slow=400,
    )
    made: dict[str, Any] = {
        "endpoint": "churn",
        "version": "churn:1.1.0",
        "stable": "1.0.0",
        "stage": "production",
        "plan": _endpoint().plan,
        "flow": Flow(
            callers_per_s=20.0, requests_per_caller=3.0, failing=0.005, failing_first=0.0045, slow=0.01
        ),
        "measured": measured,
        "given": ("failing callers",),
        "assumed": (),
        "outlook": Outlook(
            runs=400,
            seed=1,
            horizon_s=10_800.0,
            error=0.049,
            healthy=healthy,
            regressions=(regression, gross),
        ),
    }
    return RolloutForecast(**{**made, **more})


def _label_outlook() -> LabelsOutlook:
    """What labels are to be expected."""
    return LabelsOutlook(
        labelled=0.25,
        wrong=0.08,
        counted=True,
        proof=LabelsNeeded(odds=1.0, callers=171.0, takes_s=4_300.0),
        regressions=(
            LabelsNeeded(odds=1.5, callers=None, takes_s=None),
            LabelsNeeded(odds=4.0, callers=61.0, takes_s=1_200.0),
        ),
    )


def _labelled() -> Rollout:
    """A rollout that has shown all but its labels."""
    judged = structs.replace(
        _endpoint().plan, quality=Quality(threshold=0.5, wait_s=259_200.0), metrics=JUDGED_LATER
    )
    labels = Labelled(
        candidate=LabelCounts(
            labels=31, wrong=4, odd=1, callers_labelled=29, callers_wrong_at_once=4, callers_first_wrong=4
        ),
        stable=LabelCounts(labels=270, wrong=25, callers_labelled=244, callers_first_wrong=22),
    )
    why = f"not enough labels yet: {labels_seen(labels)}"
    found = Judgement(verdict=Verdict.HOLD, why=why, p_value=0.7, missing=Missing.LABELS)
    outputs = BandCounts(candidate=(3, 20, 60, 37), stable=(27, 180, 500, 373))
    return _rollout(plan=judged, labels=labels, outputs=outputs, judgement=found, held=why, step_since=T0)


def test_rollouts_read_well(golden: Callable[[str, str], None]) -> None:
    """Endpoints, a rollout in a step and after its end, and the lines of a watch in a pipe."""
    done = _rollout(
        state=RolloutState.ROLLED_BACK,
        outcome="more callers fail than on stable",
        weight_ppm=0,
        finished_at=T0 + timedelta(minutes=3),
    )
    text = _drawn(
        ("endpoint ls", endpoint_views.endpoints([_endpoint()])),
        ("endpoint show", endpoint_views.endpoint_with_misses(_status(_rollout()))),
        ("rollout status", rollout_views.status(_status(_rollout()))),
        ("rollout status, ended", rollout_views.status(_status(done))),
        ("rollout status, waiting for labels", rollout_views.status(_status(_labelled()))),
        ("rollout status, none", rollout_views.status(_status(None))),
        ("rollout ls", rollout_views.rollouts([done, _rollout()])),
        ("rollout forecast", forecast_views.forecast(_forecast())),
        (
            "rollout forecast, given",
            forecast_views.forecast(_forecast(measured=None, assumed=("slow callers",))),
        ),
        ("rollout forecast, of a test", forecast_views.forecast(_forecast(contest=CONTEST))),
        ("rollout forecast, with labels", forecast_views.forecast(_forecast(labels=_label_outlook()))),
        ("watch", rollout_views.one_line(rollout_views.change(_status(_rollout())))),
        ("watch, ended", rollout_views.one_line(rollout_views.change(_status(done)))),
    )
    golden("cli_rollout.txt", text)


def test_people_and_records_read_well(golden: Callable[[str, str], None]) -> None:
    """Who one is, roles, tokens without secrets, and the log with a mark on who was not checked."""
    grants = (
        Grant(id="grt_1", principal="ben", role=Role.APPROVER, created_at=T0, created_by="ada"),
        Grant(
            id="grt_2",
            principal="ben",
            role=Role.VIEWER,
            project="risk",
            model="churn",
            created_at=T0,
            created_by="ada",
        ),
    )
    who = WhoAmI(
        actor=Actor(name="ben"), mode=AuthMode.TOKEN, owner=False, grants=grants, verbs=None, project=None
    )
    owner = WhoAmI(actor=BEN, mode=AuthMode.LOCAL, owner=True, grants=(), verbs=None, project=None)
    info = TokenInfo(
        id="abc",
        principal="ben",
        label="laptop",
        verbs=None,
        project="risk",
        created_at=T0,
        expires_at=T0 + timedelta(days=90),
    )
    event = Event(sequence=1, kind=EventKind.MODEL_CREATED, at=T0, actor=BEN, subject="churn", reason="new")
    ben = Principal(name="ben", kind=PrincipalKind.USER, created_at=T0, created_by="ada")
    text = _drawn(
        ("whoami", access_views.whoami(who, "http://127.0.0.1:5000")),
        ("whoami, local", access_views.whoami(owner, "http://127.0.0.1:5000")),
        ("user create", access_views.principal(ben)),
        ("user ls", access_views.principals([ben])),
        ("grant ls", access_views.grants(grants)),
        ("token ls", access_views.tokens([info])),
        ("audit log", access_views.events(EventPage(items=(chain(GENESIS, event),)))),
    )
    golden("cli_access.txt", text)


def test_care_reads_well(golden: Callable[[str, str], None]) -> None:
    """The doctor, fsck, the gateway's own rollback, and the first line of all."""
    problem = FileProblem(digest=digest("c"), path="model.onnx", versions=("churn:1.1.0",), problem="missing")
    report = FsckReport(
        ok=False,
        versions=2,
        blobs=3,
        size_bytes=9_000_000,
        missing=1,
        damaged=0,
        problems=(problem,),
        dangling=1,
        dangling_bytes=2_048,
    )
    actor = Altered(where="churn:#2", what="stage_intervals[41].actor", recorded="ann", found="eve")
    metric = Altered(where="churn:#1", what="version_metrics[auc]", recorded='{"value":0.91}', found=None)
    changed = FsckReport(
        ok=False, versions=2, blobs=3, size_bytes=9_000_000, missing=0, damaged=0, altered=(actor, metric)
    )
    checks = [
        DoctorCheck(name="server", ok=True, found="answers in 1 ms"),
        DoctorCheck(name="disk", ok=False, found="0.1 GiB are free", advice="make room"),
    ]
    back = {
        "endpoint": "churn",
        "version": "churn:1.0.0",
        "removed_version": "churn:1.1.0",
        "took_ms": 0.61,
        "fronts": 1,
        "journaled": True,
    }
    places = {
        "registry": "http://127.0.0.1:5000",
        "gateway": "http://127.0.0.1:5001",
        "data": "modelkeep-data",
    }
    text = _drawn(
        ("up", server_views.up(places)),
        ("doctor", server_views.checks(checks)),
        ("fsck", server_views.fsck(report)),
        ("fsck", server_views.fsck(changed)),
        ("gateway rollback", server_views.gateway_rollback(back)),
        ("gateway rollback, to one that slept", server_views.gateway_rollback(back | {"loading": True})),
    )
    golden("cli_server.txt", text)


def test_help_reads_well(golden: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing a newcomer reads."""
    assert run(["--help"]) == 0
    golden("cli_help.txt", capsys.readouterr().out)


@given(
    rows=st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.integers()), max_size=5),
    width=st.integers(40, 120),
)
def test_a_table_fits_the_terminal(rows: list[tuple[str, str, int]], width: int) -> None:
    """No line is wider than the terminal, whatever the cells hold, and none breaks."""
    out = io.StringIO()
    Screen(out, width=width).table(("one", "two", "three"), rows, right=(2,))
    lines = out.getvalue().splitlines()
    used = any(any(str(cell) for cell in row) for row in rows)
    assert len(lines) == (len(rows) + 1 if used else 0)
    assert all(_cells(line) <= width for line in lines)


def _cells(line: str) -> int:
    from modelkeep.cli.show import _width

    return _width(line)


@given(text=st.text())
def test_no_text_reaches_the_terminal_raw(text: str) -> None:
    """Of what comes from a server only printable characters are written."""
    out = io.StringIO()
    screen = Screen(out, colour=False)
    screen.line(text)
    screen.facts((("name", text),))
    assert all(c.isprintable() or c == "\n" for c in out.getvalue())


def test_colour_is_only_where_it_is_wanted() -> None:
    """The same view with and without colours has the same words."""
    view = catalog_views.versions(_versions())
    plain, coloured = _drawn(("x", view)), _drawn(("x", view), colour=True)
    assert "\x1b[" not in plain
    assert "\x1b[32m" in coloured


def test_a_view_is_drawn_over_the_former() -> None:
    """A redraw goes up exactly as many lines as it drew before."""
    out = io.StringIO()
    screen = Screen(out, width=80)
    drawn = rollout_views.redraw(screen, lambda s: s.raw("a\n" + "b" * 100), 0)
    assert drawn == 3
    rollout_views.redraw(screen, lambda s: s.line("c"), drawn)
    assert out.getvalue().endswith("\x1b[3F\x1b[Jc\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (90, "90 s"), (600, "10 min"), (7_200, "2 h"), (200_000, "2.31 d")]
)
def test_spans_are_said_as_people_do(seconds: float, text: str) -> None:
    """A span has the unit in which it is a small number."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 1024**4, "3072.0 GiB")]
)
def test_sizes_are_said_as_people_do(count: int, text: str) -> None:
    """A size has the unit in which it is a small number."""
    assert size(count) == text


def test_a_styled_text_is_its_text() -> None:
    """Style is beside the text, so comparing and joining see the text alone."""
    assert Text("x", "good") == "x"


@pytest.mark.req("S2")
def test_a_policy_says_how_it_moves_traffic_and_is_its_document_all_the_same() -> None:
    """The plan of a stage in one line above the YAML, which can be set again as it was printed."""
    text = "name: team\nstages: {production: {rollout: {strategy: blue_green, preview_s: 60}}}"
    held = read_policy(text)
    record = PolicyRecord(scope="", source="", version=2, digest=digest("a"), policy=held)
    drawn = _drawn(("policy", promotion_views.policy(record)))
    assert "# traffic to production: blue-green: preview for 60 s, then 100" in drawn
    assert read_policy(drawn.removeprefix("--- policy\n")) == held
