"""What a command line does: exit codes, JSON as on the wire, ids, dry runs, questions, and errors in one
line.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from msgspec import structs

from modelkeep.cli import main
from modelkeep.core import codec, errors
from modelkeep.core.answers import (
    GateReport,
    Preview,
    Promotion,
    PromotionKind,
    Registration,
    Rollback,
    Ruling,
    VerifyReport,
)
from modelkeep.core.rollout import Endpoint, Plan
from modelkeep.core.semver import Bump
from modelkeep.core.values import ModelName
from tests.client.fake_server import Asked, FakeServer
from tests.client.samples import CHURN, T0, digest, model, version

pytestmark = [pytest.mark.req("U1"), pytest.mark.network]
Run = Callable[..., Any]
MODEL = "/api/v1/models/default/churn"


def _report(ruling: Ruling, **more: Any) -> GateReport:
    told: dict[str, Any] = {
        "version": "churn:1.1.0",
        "number": 2,
        "stage": "production",
        "ruling": ruling,
        "gates": (),
        "policy": "built in",
        "policy_version": 0,
        "policy_digest": digest("d"),
        "incumbent": 1,
        "request": None,
        "approved_by": (),
        "approvals_missing": 0,
        "approvals_roles": (),
        "obstacle": None,
        "next": "",
    }
    return GateReport(**{**told, **more})


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.PolicyDenied, 3),
        (errors.NoRollbackTarget, 3),
        (errors.SelfApproval, 3),
        (errors.Tombstoned, 3),
        (errors.NotAuthenticated, 4),
        (errors.TokenExpired, 4),
        (errors.NotAllowed, 4),
        (errors.VersionNotFound, 5),
        (errors.AliasMoved, 6),
        (errors.ApprovalRequired, 8),
        (errors.DigestMismatch, 1),
        (errors.StoreUnavailable, 1),
        (errors.InvalidReference, 1),
    ],
)
def test_an_error_is_one_line_and_a_code(
    server: FakeServer, modelkeep: Run, error: type[errors.ModelkeepError], code: int
) -> None:
    """Each family has its exit code; the sentence goes to stderr, alone, and nothing to stdout."""
    server.on("GET", MODEL, error("It went wrong; mend it."))
    ran = modelkeep("show", "churn")
    assert (ran.code, ran.out, ran.err) == (code, "", "modelkeep: It went wrong; mend it.\n")


def test_a_filter_error_shows_the_place(server: FakeServer, modelkeep: Run) -> None:
    """Under the sentence stand the filter and a caret under what is wrong."""
    from modelkeep.core.query.tokens import error_at

    server.on("GET", "/api/v1/versions", error_at("f1 >> 1", 4, "A number is missing here."))
    ran = modelkeep("search", "f1 >> 1")
    assert ran.err == "modelkeep: A number is missing here.\n    f1 >> 1\n        ^\n"


def test_a_server_cannot_steer_the_terminal(server: FakeServer, modelkeep: Run) -> None:
    """Control characters in a description, a tag or an error are shown, not obeyed."""
    server.on("GET", MODEL, model(description="\x1b[2Jgone", tags={"a": "\x07"}))
    assert "\x1b" not in modelkeep("show", "churn").out
    server.on("GET", MODEL, errors.ModelNotFound("There is no \x1b[31m."))
    assert "\x1b" not in modelkeep("show", "churn").err


def test_json_is_the_answer_of_the_server(server: FakeServer, modelkeep: Run) -> None:
    """--json prints what the wire carried, whole, on one line in a pipe."""
    page = {"items": [codec.builtins(version())], "next_page_token": None}
    server.on("GET", f"{MODEL}/versions", page)
    ran = modelkeep("ls", "churn", "--json")
    assert json.loads(ran.out) == json.loads(codec.encode(page))
    assert ran.out.count("\n") == 1


def test_quiet_prints_names(server: FakeServer, modelkeep: Run) -> None:
    """-q prints what another command takes, and nothing else."""
    server.on("GET", f"{MODEL}/versions", {"items": [version(), version(1, "1.0.0")]})
    assert modelkeep("ls", "churn", "-q").out == "churn:1.1.0\nchurn:1.0.0\n"


def test_a_pipe_cuts_nothing(server: FakeServer, modelkeep: Run) -> None:
    """A long description stands whole in a pipe, without colours."""
    server.on("GET", "/api/v1/models", {"items": [model(description="long " * 100)]})
    out = modelkeep("ls").out
    assert ("long " * 100).strip() in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("words", "needle"),
    [
        (("shw", "churn"), "Did you mean 'show'"),
        (("promote", "churn:1.0.0", "--to", "production"), "--message"),
        (("rollback", "churn"), "--message"),
        (("rollout", "abort", "churn"), "--message"),
        (("register", "nothing.onnx", "--name", "churn"), "does not exist"),
        (("ls", "--limit", "0"), "0"),
        (("tag", "set", "churn", "team"), "KEY=VALUE"),
        (("endpoint", "create", "e", "--model", "churn", "--step", "10:x"), "10%:60"),
        (("alias", "set", "churn", "1.0.0"), "MODEL@ALIAS"),
        (("review", "req_1"), "--approve"),
    ],
)
def test_a_wrong_command_line_says_how(modelkeep: Run, words: tuple[str, ...], needle: str) -> None:
    """Usage errors have exit code 2 and name what is missing or wrong."""
    ran = modelkeep(*words)
    assert ran.code == 2
    assert needle in ran.err
    assert not ran.out


@pytest.mark.parametrize(
    ("ruling", "obstacle", "code"),
    [
        (Ruling.GRANTED, None, 0),
        (Ruling.DENIED, None, 3),
        (Ruling.AWAITING_APPROVAL, None, 8),
        (Ruling.GRANTED, "It was taken back.", 3),
    ],
)
def test_a_gate_answers_by_its_code(
    server: FakeServer, modelkeep: Run, ruling: Ruling, obstacle: str | None, code: int
) -> None:
    """A pipeline can ask with `gate` or `promote --dry-run` and go by the exit code; nothing is promoted."""
    server.on("GET", "/api/v1/gate", _report(ruling, obstacle=obstacle))
    assert modelkeep("gate", "churn:1.1.0", "--to", "production", "--explain").code == code
    assert modelkeep("promote", "churn:1.1.0", "--to", "production", "-m", "x", "--dry-run").code == code
    assert {asked.method for asked in server.asked} == {"GET"}


def test_promote_sends_what_was_said(server: FakeServer, modelkeep: Run) -> None:
    """Reference, stage, reason and ticket reach the server as they were typed."""
    done = Promotion(
        kind=PromotionKind.MOVED, version=version(stage="production"), stage="production", displaced=1
    )
    server.on("POST", "/api/v1/promotions", done)
    ran = modelkeep("promote", "churn:1.1.0", "--to", "production", "-m", "AUC +0.4", "--ticket", "T-1")
    assert json.loads(server.asked[0].body) == {
        "ref": "churn:1.1.0",
        "to": "production",
        "reason": "AUC +0.4",
        "ticket": "T-1",
    }
    assert "churn:1.1.0 is in production now; #1 left it." in ran.out


def test_rollback_understands_a_bare_version(server: FakeServer, modelkeep: Run) -> None:
    """`--to 1.0.0` is a version of the model that is taken back."""
    done = Rollback(
        kind=PromotionKind.MOVED,
        stage="production",
        version=version(1, "1.0.0"),
        from_number=2,
        from_semver="1.1.0",
        tombstoned=True,
    )
    server.on("POST", "/api/v1/rollbacks", done)
    ran = modelkeep("rollback", "churn", "-m", "errors", "--to", "1.0.0")
    assert json.loads(server.asked[0].body)["to"] == "churn:1.0.0"
    assert "modelkeep clear churn:1.1.0 -m WHY" in ran.out


def test_a_dry_rollback_names_where_it_would_go(server: FakeServer, modelkeep: Run) -> None:
    """The server says it, by the code that would do it; with a rollout under way, that would end."""
    gone = Rollback(
        kind=PromotionKind.MOVED,
        stage="production",
        version=version(1, "1.0.0"),
        from_number=2,
        from_semver="1.1.0",
        tombstoned=True,
    )
    server.on("GET", "/api/v1/rollbacks/preview", gone)
    ran = modelkeep("rollback", "churn", "-m", "x", "--dry-run")
    assert ran.out == "production would go back to churn:1.0.0\n"
    ended = structs.replace(gone, kind=PromotionKind.ROLLOUT, stage=None, alias="champion")
    server.on("GET", "/api/v1/rollbacks/preview", ended)
    ran = modelkeep("rollback", "churn", "-m", "x", "--alias", "champion", "--to", "1.0.0", "--dry-run")
    assert ran.out == "The rollout of 1.1.0 would end; @champion stays at churn:1.0.0\n"
    assert (server.asked[-1].query["alias"], server.asked[-1].query["to"]) == ("champion", "churn:1.0.0")
    assert {asked.method for asked in server.asked} == {"GET"}


def test_deleting_asks_unless_told(server: FakeServer, modelkeep: Run) -> None:
    """Where nobody can be asked, nothing is deleted without --yes; a dry run only shows."""
    server.on("GET", "/api/v1/version", version())
    server.on("DELETE", "/api/v1/version", {"done": True})
    assert modelkeep("versions", "delete", "churn@champion").code == 2
    assert modelkeep("versions", "delete", "churn@champion", "--dry-run").code == 0
    assert "DELETE" not in {asked.method for asked in server.asked}
    assert modelkeep("versions", "delete", "churn@champion", "--yes").code == 0
    assert server.asked[-1].query["ref"] == "churn:#2"  # what was shown is deleted, also when the alias moves


def test_register_as_it_stands_in_the_manual(server: FakeServer, modelkeep: Run, tmp_path: Path) -> None:
    """The line of the README: metadata, a metric and a tag arrive in the draft."""
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "model.yaml").write_text("model: {framework: onnx}\n")
    server.drafts.finalize = Registration(version=version(), created=True, reasons=("minor: new weights",))
    ran = modelkeep(
        "register",
        str(tmp_path / "model.onnx"),
        "--name",
        "churn",
        "--metadata",
        str(tmp_path / "model.yaml"),
        "--metric",
        "accuracy=0.94",
        "--tag",
        "team=risk",
    )
    assert ran.code == 0, ran.err
    assert "Registered churn:1.1.0" in ran.out
    assert server.drafts.draft is not None
    assert server.drafts.draft["spec"]["tags"] == {"team": "risk"}
    assert not ran.err  # no progress in a pipe


@pytest.mark.req("V2")
def test_a_dry_register_shows_the_number_and_writes_nothing(
    server: FakeServer, modelkeep: Run, tmp_path: Path
) -> None:
    """The server says which number and why; only that question is asked, and a refusal is one here too."""
    foreseen = Preview(
        version="churn:2.0.0",
        created=True,
        new_model=False,
        bump=Bump.MAJOR,
        reasons=("major: Input 'age' was removed.",),
        parent=2,
        files=1,
        size_bytes=4,
        to_send=("model.onnx",),
        to_send_bytes=4,
    )
    server.on("POST", f"{MODEL}/drafts/preview", foreseen)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    words = ("register", str(tmp_path / "model.onnx"), "--name", "churn", "--dry-run", "--bump", "minor")

    ran = modelkeep(*words)

    assert "It would become churn:2.0.0 (a major version, against #2)" in ran.out
    assert "Input 'age' was removed." in ran.out
    assert "model.onnx" in ran.out
    (asked,) = server.asked
    assert json.loads(asked.body)["bump"] == "minor"
    server.on("POST", f"{MODEL}/drafts/preview", errors.SemverTooLow("1.2.0 is too low."))
    refused = modelkeep(*words)
    assert (refused.code, refused.err) == (1, "modelkeep: 1.2.0 is too low.\n")


@pytest.mark.req("V12")
def test_yanking_and_letting_back_say_what_holds(server: FakeServer, modelkeep: Run) -> None:
    """Both take a reason and send it."""
    server.on("POST", "/api/v1/version/yank", version(yanked="leaked labels"))
    server.on("POST", "/api/v1/version/unyank", version())
    assert "is yanked (leaked labels)" in modelkeep("yank", "churn:1.1.0", "-m", "leaked labels").out
    assert "may be chosen again" in modelkeep("unyank", "churn:1.1.0", "-m", "they were fine").out
    assert [(asked.query, json.loads(asked.body)) for asked in server.asked] == [
        ({"ref": "churn:1.1.0"}, {"reason": "leaked labels"}),
        ({"ref": "churn:1.1.0"}, {"reason": "they were fine"}),
    ]
    assert modelkeep("yank", "churn:1.1.0").code == 2


@pytest.mark.req("T4")
def test_renaming_says_the_new_name(server: FakeServer, modelkeep: Run) -> None:
    """It sends the new name to the old one's address, and shows the model as it is called then; without a
    name nothing is sent."""
    renamed = structs.replace(model(), name=ModelName("default", "leavers"))
    server.on("POST", "/api/v1/models/default/churn/rename", renamed)
    done = modelkeep("rename", "churn", "leavers")
    assert (done.code, "leavers" in done.out) == (0, True)
    assert [json.loads(asked.body) for asked in server.asked] == [{"name": "leavers"}]
    assert modelkeep("rename", "churn").code == 2


def test_schemas_need_no_server(modelkeep: Run) -> None:
    """That of metadata is a JSON Schema that takes the short forms, as an editor wants it; so is that of
    plans."""
    done = modelkeep("schema")
    validator = Draft202012Validator(json.loads(done.out))
    assert validator.is_valid({"performance": {"metrics": {"auc": 0.9}}})
    assert not validator.is_valid({"performance": {"metrics": "none"}})
    plan = json.loads(modelkeep("schema", "plan").out)
    assert plan["$id"] == "urn:modelkeep.rollout:v1"
    assert Draft202012Validator(plan).is_valid({"strategy": "blue_green", "steps": [{"weight_ppm": 1000000}]})
    assert not Draft202012Validator(plan).is_valid({"strategy": "red_green"})
    policy = json.loads(modelkeep("schema", "policy").out)
    Draft202012Validator.check_schema(policy)
    assert policy["$id"] == "urn:modelkeep.policy:v1"
    assert modelkeep("schema", "model").code == 2


def test_damage_is_an_error(server: FakeServer, modelkeep: Run) -> None:
    """`verify` of a damaged version ends with code 1."""
    report = VerifyReport(version="churn:1.1.0", digest=digest("a"), ok=False, files=2, size_bytes=10)
    server.on("POST", "/api/v1/version/verify", report)
    assert modelkeep("verify", "churn:1.1.0").code == 1


def test_an_endpoint_is_created_with_its_steps(server: FakeServer, modelkeep: Run, tmp_path: Path) -> None:
    """A plan file gives the bounds, --step the steps."""
    sent: list[Plan] = []

    def put(asked: Asked) -> object:
        body = json.loads(asked.body)
        sent.append(codec.convert(body["plan"], Plan))
        return Endpoint(
            id="end_1",
            name="churn",
            model=CHURN,
            stage="production",
            plan=sent[0],
            created_at=T0,
            created_by="ada",
        )

    server.on("PUT", "/api/v1/endpoints/churn", put)
    (tmp_path / "plan.yaml").write_text("alpha: 0.05\n")
    ran = modelkeep(
        "endpoint",
        "create",
        "churn",
        "--model",
        "churn",
        "--follows",
        "production",
        "--key-header",
        "x-user-id",
        "--plan",
        str(tmp_path / "plan.yaml"),
        "--step",
        "10%:60",
        "--step",
        "50%:60",
        "--step",
        "100%:60",
    )
    assert ran.code == 0, ran.err
    assert [step.weight_ppm for step in sent[0].steps] == [100_000, 500_000, 1_000_000]
    assert sent[0].alpha == 0.05


def test_address_and_token_may_stand_anywhere(server: FakeServer, modelkeep: Run) -> None:
    """--url and --token hold before and after the command; the nearer one wins."""
    server.on("GET", MODEL, model())
    assert modelkeep("--url", server.url, "show", "churn").code == 0
    assert (
        modelkeep("--url", "http://127.0.0.1:1", "show", "churn", "--url", server.url, "--token", "x").code
        == 0
    )
    assert server.asked[-1].headers["authorization"] == "Bearer x"


def test_every_command_has_the_shared_options() -> None:
    """Each command that speaks with a server takes --json, -q, --url and --token, and says what it is for."""
    import click

    def leaves(command: click.Command, path: str) -> list[tuple[str, click.Command]]:
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = [(name, command.get_command(context, name)) for name in command.list_commands(context)]
            return [
                leaf for name, inner in found if inner for leaf in leaves(inner, f"{path} {name}".strip())
            ]
        return [(path, command)]

    for path, command in leaves(main.modelkeep, ""):
        assert command.help, path
        if path != "completion":
            names = {word for parameter in command.params for word in parameter.opts}
            assert {"--json", "-q", "--url", "--token"} <= names, path


def test_every_command_of_the_table_is_there() -> None:
    """The table behind `--help` and the commands themselves agree."""
    import click

    for name, entry in main.COMMANDS.items():
        command = main.modelkeep.get_command(click.Context(main.modelkeep), name)
        assert command is not None, name
        assert command.name == name
        assert entry.help.endswith(".")


def test_settings_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch, modelkeep: Run) -> None:
    """`config show` prints every setting; a token is three stars."""
    monkeypatch.setenv("MODELKEEP_TOKEN", "mk_u_secret")
    ran = modelkeep("config", "show")
    assert "mk_u_secret" not in ran.out
    assert "***" in ran.out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(modelkeep: Run, shell: str) -> None:
    """Each shell gets a script that names the program."""
    assert "_MODELKEEP_COMPLETE" in modelkeep("completion", shell).out


def test_nobody_listening_is_an_error(monkeypatch: pytest.MonkeyPatch, modelkeep: Run) -> None:
    """Without a server the first command says how to start one."""
    monkeypatch.setenv("MODELKEEP_URL", "http://127.0.0.1:1")
    ran = modelkeep("ls")
    assert ran.code == 1
    assert "modelkeep up" in ran.err
