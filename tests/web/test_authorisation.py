"""Who may do what: every row of the route table, every role, on one's own project, another one, and nothing.

The table below is the whole truth, written out; the verbs and roles that lead to it are the core's business.
Deny, narrowed tokens and tokens that are no good are tested beside it.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from modelkeep.core.access import Effect, Role
from modelkeep.service.act import SYSTEM_CONTEXT
from modelkeep.web.app import OPERATIONS, create_app
from tests.web.asks import ASKS, V1, Aim
from tests.web.inprocess import InProcess, in_process
from tests.web.world import OTHER, PEOPLE, World, fill, opened, rehearsing

pytestmark = pytest.mark.req("G10")

WHO = (*PEOPLE, "nobody")
TARGETS = ("own", "other", "missing")
MEANING = {200: "y", 201: "y", 401: "x", 403: "f", 404: "h", 409: "c"}

# Columns: viewer, contributor, maintainer, approver, admin, auditor (each of `own`), gateway, stranger (no
# role), root (admin everywhere), overseer (auditor everywhere), nobody (no token).
# y done, c allowed but in conflict with the state, f forbidden, h hidden (as if it did not exist), x who are
# you.
#
#                      on own      on other    on nothing
# fmt: off
TABLE: dict[str, str] = {
    "get_version": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "get_model": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "list_models": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "create_model": "fyyfyfffyfx ffffffffyfx fyyfyfffyfx",
    "change_model": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "rename_model": "ffcfcfhhcfx hhhhhhhhcfx ffhfhfhhhfx",
    "delete_model": "ffcfcfhhcfx hhhhhhhhcfx ffhfhfhhhfx",
    "set_stages": "ffyfyfhhyfx hhhhhhhhyfx ffhfhfhhhfx",
    "list_versions": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "search_versions": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "change_version": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "delete_version": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "yank_version": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "unyank_version": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "set_alias": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "delete_alias": "fyyfyfhhyfx hhhhhhhhyfx fhhfhfhhhfx",
    "compare": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "best": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "diff": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "begin_draft": "fyyfyfhhyfx hhhhhhhhyfx fyyfyfhhyfx",
    "preview_draft": "fyyfyfhhyfx hhhhhhhhyfx fyyfyfhhyfx",
    "get_draft": "hyyhyhhhyhx hhhhhhhhhhx hhhhhhhhhhx",
    "cancel_draft": "hyyhyhhhyhx hhhhhhhhhhx hhhhhhhhhhx",
    "upload_file": "hyyhyhhhyhx hhhhhhhhhhx hhhhhhhhhhx",
    "finalize_draft": "hyyhyhhhyhx hhhhhhhhhhx hhhhhhhhhhx",
    "list_files": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "download_file": "yyyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "verify_version": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "fsck": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "gate": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "promote": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "rollback": "ffyfyfhhyfx hhhhhhhhyfx ffhfhfhhhfx",
    "preview_rollback": "ffyfyfhhyfx hhhhhhhhyfx ffhfhfhhhfx",
    "clear_version": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "open_request": "fyyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "list_requests": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "get_request": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "review": "ffyyyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "withdraw": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "history": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "whatwas": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "get_policy": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "set_policy": "ffyfyfhhyfx hhhhhhhhyfx ffhfhfhhhfx",
    "list_endpoints": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "get_endpoint": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "put_endpoint": "ffyfyfhhyfx hhhhhhhhyfx ffhfhfhhhfx",
    "delete_endpoint": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "rollout_status": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "rollout_abort": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "rollout_pause": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "rollout_resume": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "rollout_step": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "list_rollouts": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "get_rollout": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "explain_rollout": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "rollout_forecast": "cccccchhccx hhhhhhhhccx hhhhhhhhhhx",
    "get_verdict": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "endpoint_verdict": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "ask_verdict": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "judge_counts": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "simulate_rollout": "cccccchhccx hhhhhhhhccx hhhhhhhhhhx",
    "prepare_drill": "ffyfyfhhyfx hhhhhhhhyfx hhhhhhhhhhx",
    "begin_drill": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "record_drill": "ffcfcfhhcfx hhhhhhhhcfx hhhhhhhhhhx",
    "report_delivery": "yyyyyyhhyyx hhhhhhhhyyx hhhhhhhhhhx",
    "gateway_table": "ffffffyfffx ffffffyfffx ffffffyfffx",
    "gateway_report": "ffffffyfffx ffffffyfffx ffffffyfffx",
    "gateway_blob": "ffffffyfffx ffffffyfffx ffffffhfffx",
    "list_webhooks": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "create_webhook": "ffyfyfffyfx ffffffffyfx ffyfyfffyfx",
    "get_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "change_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "delete_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "enable_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "disable_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "rotate_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "test_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "list_deliveries": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "replay_webhook": "hhyhyhhhyhx hhhhhhhhyhx hhhhhhhhhhx",
    "import_batch": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "import_summary": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "imported_files": "ffffffffyfx ffffffffyfx ffffffffhfx",
    "missing_files": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "send_file": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "list_events": "ffyyyyffyyx ffffffffyyx ffyyyyffyyx",
    "verify_audit": "ffffffffyyx ffffffffyyx ffffffffyyx",
    "export_audit": "ffffffffyyx ffffffffyyx ffffffffyyx",
    "whoami": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "list_principals": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "create_principal": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "disable_principal": "ffffffffyfx ffffffffyfx ffffffffhfx",
    "list_tokens": "yyyyyyyyyyx yyyyyyyyyyx yyyyyyyyyyx",
    "create_token": "yfffffffyfx yfffffffyfx ffffffffhfx",
    "revoke_token": "yhhhhhhhyhx yhhhhhhhyhx hhhhhhhhhhx",
    "list_grants": "ffffffffyfx ffffffffyfx ffffffffyfx",
    "add_grant": "ffffyfffyfx ffffffffyfx ffffhfffhfx",
    "remove_grant": "ffffyfffyfx ffffyfffyfx ffffffffhfx",
    "health": "yyyyyyyyyyy yyyyyyyyyyy yyyyyyyyyyy",
    "ready": "yyyyyyyyyyy yyyyyyyyyyy yyyyyyyyyyy",
    "metrics": "yyyyyyyyyyy yyyyyyyyyyy yyyyyyyyyyy",
    "openapi": "yyyyyyyyyyy yyyyyyyyyyy yyyyyyyyyyy",
}
# fmt: on


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """An installation that nothing in this file changes."""
    with opened(tmp_path_factory.mktemp("data"), "token") as house:
        yield fill(house)


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[InProcess]:
    """Its application, whose writes are taken back."""
    with in_process(create_app(rehearsing(world.house))) as found:
        yield found


def test_every_route_has_its_row() -> None:
    """A route that nobody has thought about is not open by accident."""
    names = {row.name for row in OPERATIONS}
    assert names == set(TABLE) == set(ASKS)


@pytest.mark.parametrize("operation", [row.name for row in OPERATIONS])
def test_who_may_do_what(world: World, client: InProcess, operation: str) -> None:
    """Each role gets what the table says, on each kind of object."""
    found = []
    for target in TARGETS:
        answers = [
            ASKS[operation](Aim(world, target, who)).send(client, token=world.tokens.get(who)) for who in WHO
        ]
        found.append("".join(MEANING.get(reply.status, str(reply.status)) for reply in answers))
    assert " ".join(found) == TABLE[operation]


@pytest.mark.parametrize("operation", [name for name, row in TABLE.items() if "h" in row.split()[1]])
def test_what_is_hidden_reads_as_if_it_were_not_there(
    world: World, client: InProcess, operation: str
) -> None:
    """For a stranger, an object of another project and one that never was give the same words."""
    told = []
    for target in ("other", "missing"):
        reply = ASKS[operation](Aim(world, target, "stranger")).send(client, token=world.tokens["stranger"])
        assert reply.status == 404
        problem = reply.json()
        text = f"{problem['code']} {problem['detail']}"
        aim = Aim(world, target, "stranger")
        for name in (aim.webhook, aim.name, aim.draft, aim.request, aim.rollout, aim.endpoint, aim.token):
            text = text.replace(name.removeprefix(V1).rpartition("/")[2] if V1 in name else name, "NAME")
        told.append(text)
    assert told[0] == told[1]


def test_lists_hold_only_what_may_be_read(world: World, client: InProcess) -> None:
    """Lists and searches are filtered in the query: another project's rows are not there."""
    for path, of_item in (
        (f"{V1}/models", lambda item: item["name"]["project"]),
        (f"{V1}/versions", lambda item: item["model"]["project"]),
        (f"{V1}/endpoints", lambda item: item["model"]["project"]),
        (f"{V1}/rollouts", lambda item: item["model"]["project"]),
        (f"{V1}/requests", lambda item: item["model"]["project"]),
    ):
        seen = {
            who: {of_item(item) for item in client("GET", path, token=world.tokens[who]).json()["items"]}
            for who in ("viewer", "stranger", "root")
        }
        assert seen == {"viewer": {"own"}, "stranger": set(), "root": {"own", "other"}}, path


def test_deny_wins(tmp_path: Path) -> None:
    """A denial takes away what another grant gives, on the model it names and nowhere else."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        for project, model in ((None, None), ("other", "churn")):
            house.desk.do(
                SYSTEM_CONTEXT,
                house.access.add_grant,
                principal="maintainer",
                role=Role.MAINTAINER,
                project=project,
                model=model,
                effect=Effect.DENY if model else Effect.ALLOW,
            )
        with in_process(create_app(house), world.tokens["maintainer"]) as client:
            assert client("GET", f"{V1}/models/own/churn").status == 200
            assert client("GET", f"{V1}/models/other/churn").code == "MODEL_NOT_FOUND"
            names = [item["name"] for item in client("GET", f"{V1}/models").json()["items"]]
            assert names == [{"project": "own", "name": "churn"}]
            assert client("POST", f"{V1}/models", {"project": "other", "name": "fresh"}).status == 201


def test_a_token_may_be_narrower_than_its_owner(tmp_path: Path) -> None:
    """A token for some verbs, or for one project, gives no more than that, and makes no wider one."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        with in_process(create_app(house), world.tokens["root"]) as client:
            body = {"label": "reads own", "verbs": ["read"], "project": "own"}
            narrow = client("POST", f"{V1}/tokens", body).json()["secret"]
            assert client("GET", f"{V1}/models/own/churn", token=narrow).status == 200
            assert client("GET", f"{V1}/models/{OTHER}", token=narrow).code == "MODEL_NOT_FOUND"
            refused = client("PATCH", f"{V1}/models/own/churn", {"description": "x"}, token=narrow)
            assert (refused.code, refused.json()["details"]["verb"]) == ("NOT_ALLOWED", "edit")
            wider = client("POST", f"{V1}/tokens", {"label": "more", "verbs": ["read", "edit"]}, token=narrow)
            assert wider.code == "NOT_ALLOWED"
            same = client("POST", f"{V1}/tokens", {"label": "as much"}, token=narrow).json()["info"]
            assert (same["verbs"], same["project"]) == (["read"], "own")


def test_tokens_that_are_no_good(tmp_path: Path) -> None:
    """Unknown, malformed, revoked, foreign and a shut-out owner's tokens get 401 in the same words."""
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    with opened(elsewhere, "token") as house:
        foreign = fill(house).tokens["root"]
    with opened(folder, "token") as house:
        world = fill(house)
        good = world.tokens["root"]
        with in_process(create_app(house), good) as client:
            assert client("GET", f"{V1}/whoami").status == 200
            client("DELETE", f"{V1}/tokens/{world.token_ids['viewer']}")
            client("POST", f"{V1}/principals/contributor/disable")
            bad = {
                "foreign": foreign,
                "revoked": world.tokens["viewer"],
                "shut out": world.tokens["contributor"],
                "one letter off": good[:-1] + ("a" if good[-1] != "a" else "b"),
                "cut": good[:-5],
                "no token at all": "hunter2",
                "not ASCII": "mk_u_éééééééééééé_" + "e" * 38,
                "huge": "mk_" + "x" * 10_000,
            }
            told = {}
            for what, token in bad.items():
                reply = client("GET", f"{V1}/whoami", headers={"authorization": f"Bearer {token}"})
                problem = reply.json()
                assert reply.status == 401, what
                assert reply.headers["www-authenticate"].startswith("Bearer")
                told[what] = (problem["code"], problem["detail"], str(problem["details"]))
            assert set(told.values()) == {told["foreign"]}
            assert client("GET", f"{V1}/whoami", headers={"authorization": "Digest x"}).status == 401


def test_an_expired_token_says_so(tmp_path: Path) -> None:
    """A token that was good is told from one that never was, so that its owner knows what to do."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        with in_process(create_app(house)) as client:
            later = house.desk.clock() + timedelta(days=91)
            house.desk.clock = lambda: later
            reply = client("GET", f"{V1}/whoami", token=world.tokens["viewer"])
            assert (reply.status, reply.code) == (401, "TOKEN_EXPIRED")


def test_a_token_may_be_sent_as_a_password(world: World, client: InProcess) -> None:
    """The MLflow client sends Basic: the token as the password, whatever the user."""
    import base64

    pair = base64.b64encode(f"anybody:{world.tokens['viewer']}".encode()).decode()
    reply = client("GET", f"{V1}/whoami", headers={"authorization": f"Basic {pair}"})
    assert reply.json()["actor"]["name"] == "viewer"
    assert client("GET", f"{V1}/whoami", headers={"authorization": "Basic ***"}).status == 401


def test_refused_attempts_are_in_the_audit_log(tmp_path: Path) -> None:
    """Who tried what they may not is recorded, and a flood of attempts does not fill the log."""
    with opened(tmp_path, "token") as house:
        world = fill(house)
        with in_process(create_app(house), world.tokens["viewer"]) as client:
            for _ in range(40):
                assert client("POST", f"{V1}/rollbacks", {"model": "own/churn", "reason": "x"}).status == 403
            house.desk.do(SYSTEM_CONTEXT, lambda _act: None)  # what was told to be written is written
            query = {"kind": "access.refused"}
            found = client("GET", f"{V1}/audit/events", query=query, token=world.tokens["root"]).json()[
                "items"
            ]
    assert 1 <= len(found) <= 20
    event = found[0]["event"]
    assert (event["actor"]["name"], event["subject"]) == ("viewer", "operation/rollback")
    assert event["body"]["details"]["verb"] == "rollback"
