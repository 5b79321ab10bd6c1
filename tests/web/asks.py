"""One well-formed request for every row of the route table, aimed at the caller's own project, at another
one, or at nothing.

A row without an entry here fails the tests that walk the table. What the answers should be is not said here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.web.inprocess import InProcess, Reply
from tests.web.world import World, digest_of

V1 = "/api/v1"


@dataclass(frozen=True)
class Ask:
    """A request, but for who sends it."""

    method: str
    path: str
    body: Any = None
    query: dict[str, Any] | None = None
    raw: bytes | None = None

    def send(self, client: InProcess, **more: Any) -> Reply:
        return client(self.method, self.path, self.body, query=self.query, raw=self.raw, **more)


@dataclass(frozen=True)
class Aim:
    """What a request is aimed at: `own`, `other` or `missing`, as the person `who` would."""

    world: World
    target: str
    who: str

    @property
    def model(self) -> str:
        return f"{V1}/models/{self.project}/{'nothing' if self.target == 'missing' else 'churn'}"

    @property
    def project(self) -> str:
        return "other" if self.target == "other" else "own"

    @property
    def name(self) -> str:
        return f"{self.project}/{'nothing' if self.target == 'missing' else 'churn'}"

    def ref(self, mark: str = ":1.2.0") -> dict[str, Any]:
        return {"ref": f"{self.name}{mark}"}

    @property
    def endpoint(self) -> str:
        name = "nothing" if self.target == "missing" else f"{self.project}-live"
        return f"{V1}/endpoints/{name}"

    @property
    def request(self) -> str:
        found = self.world.requests.get(self.target)
        return f"{V1}/requests/{found.id if found else 'req_nothing'}"

    @property
    def draft(self) -> str:
        """One's own draft where one can have one, else the one of somebody else in the project."""
        own = self.world.drafts.get(self.who if self.target == "own" else self.target)
        return f"{V1}/drafts/{own or self.world.drafts.get(self.target, 'draft_nothing')}"

    @property
    def rollout(self) -> str:
        return f"{V1}/rollouts/{self.world.rollouts.get(self.target, 'rol_nothing')}"

    @property
    def webhook(self) -> str:
        return f"{V1}/webhooks/{self.world.webhooks.get(self.target, 'hook_nothing')}"

    @property
    def run(self) -> str:
        return self.world.runs.get(self.target, "0" * 32)

    @property
    def token(self) -> str:
        return f"{V1}/tokens/{self.world.token_ids.get(self.person, 'nothing')}"

    @property
    def person(self) -> str:
        return "nobody" if self.target == "missing" else "viewer"


WHY = {"reason": "for the test"}

ASKS: dict[str, Callable[[Aim], Ask]] = {
    "get_version": lambda a: Ask("GET", f"{V1}/version", query=a.ref()),
    "get_model": lambda a: Ask("GET", a.model),
    "list_models": lambda a: Ask("GET", f"{V1}/models"),
    "create_model": lambda a: Ask("POST", f"{V1}/models", {"project": a.project, "name": "fresh"}),
    "change_model": lambda a: Ask("PATCH", a.model, {"description": "new"}),
    "rename_model": lambda a: Ask("POST", f"{a.model}/rename", {"name": "fresh"}),
    "delete_model": lambda a: Ask("DELETE", a.model),
    "set_stages": lambda a: Ask("PUT", f"{a.model}/stages", STAGES),
    "list_versions": lambda a: Ask("GET", f"{a.model}/versions"),
    "search_versions": lambda a: Ask("GET", f"{V1}/versions", query={"filter": "metrics.accuracy > 0.9"}),
    "change_version": lambda a: Ask("PATCH", f"{V1}/version", {"set_tags": {"a": "b"}}, query=a.ref()),
    "delete_version": lambda a: Ask("DELETE", f"{V1}/version", query=a.ref()),
    "set_alias": lambda a: Ask("PUT", f"{a.model}/aliases/champion", a.ref(":1.1.0")),
    "delete_alias": lambda a: Ask("DELETE", f"{a.model}/aliases/champion"),
    "compare": lambda a: Ask("GET", f"{a.model}/compare"),
    "best": lambda a: Ask("GET", f"{a.model}/best", query={"metric": "accuracy"}),
    "diff": lambda a: Ask("GET", f"{V1}/diff", query={"a": f"{a.name}:1.0.0", "b": f"{a.name}:1.1.0"}),
    "preview_draft": lambda a: Ask("POST", f"{a.model}/drafts/preview", {"files": [FILE]}),
    "begin_draft": lambda a: Ask("POST", f"{a.model}/drafts", {"files": [FILE]}),
    "get_draft": lambda a: Ask("GET", a.draft),
    "cancel_draft": lambda a: Ask("DELETE", a.draft),
    "upload_file": lambda a: Ask("PUT", f"{a.draft}/file", query={"path": "model.bin"}, raw=a.who.encode()),
    "finalize_draft": lambda a: Ask("POST", f"{a.draft}/finalize"),
    "list_files": lambda a: Ask("GET", f"{V1}/version/files", query=a.ref()),
    "download_file": lambda a: Ask("GET", f"{V1}/version/file", query={**a.ref(), "path": "model.bin"}),
    "verify_version": lambda a: Ask("POST", f"{V1}/version/verify", query=a.ref()),
    "fsck": lambda a: Ask("POST", f"{V1}/fsck"),
    "gate": lambda a: Ask("GET", f"{V1}/gate", query={**a.ref(), "to": "staging"}),
    "promote": lambda a: Ask("POST", f"{V1}/promotions", {**a.ref(), "to": "staging", **WHY}),
    "rollback": lambda a: Ask("POST", f"{V1}/rollbacks", {"model": a.name, **WHY}),
    "preview_rollback": lambda a: Ask("GET", f"{V1}/rollbacks/preview", query={"model": a.name}),
    "yank_version": lambda a: Ask("POST", f"{V1}/version/yank", WHY, query=a.ref()),
    "unyank_version": lambda a: Ask("POST", f"{V1}/version/unyank", WHY, query=a.ref()),
    "clear_version": lambda a: Ask("POST", f"{V1}/version/clear", WHY, query=a.ref()),
    "open_request": lambda a: Ask("POST", f"{V1}/requests", {**a.ref(), "to": "production", **WHY}),
    "list_requests": lambda a: Ask("GET", f"{V1}/requests", query={"model": a.name}),
    "get_request": lambda a: Ask("GET", a.request),
    "review": lambda a: Ask("POST", f"{a.request}/reviews", {"vote": "approve"}),
    "withdraw": lambda a: Ask("POST", f"{a.request}/withdrawal", WHY),
    "history": lambda a: Ask("GET", f"{a.model}/history"),
    "whatwas": lambda a: Ask("GET", f"{V1}/whatwas", query=a.ref("#production")),
    "get_policy": lambda a: Ask("GET", f"{V1}/policy", query={"scope": a.name}),
    "set_policy": lambda a: Ask("PUT", f"{V1}/policy", query={"scope": a.name}, raw=POLICY),
    "list_endpoints": lambda a: Ask("GET", f"{V1}/endpoints"),
    "get_endpoint": lambda a: Ask("GET", a.endpoint),
    "put_endpoint": lambda a: Ask("PUT", f"{V1}/endpoints/fresh", {"model": a.name, "stage": "staging"}),
    "delete_endpoint": lambda a: Ask("DELETE", a.endpoint),
    "rollout_status": lambda a: Ask("GET", f"{a.endpoint}/rollout"),
    "rollout_abort": lambda a: Ask("POST", f"{a.endpoint}/rollout/abort", WHY),
    "rollout_pause": lambda a: Ask("POST", f"{a.endpoint}/rollout/pause", WHY),
    "rollout_resume": lambda a: Ask("POST", f"{a.endpoint}/rollout/resume", WHY),
    "rollout_step": lambda a: Ask("POST", f"{a.endpoint}/rollout/step", WHY),
    "list_rollouts": lambda a: Ask("GET", f"{V1}/rollouts", query={"model": a.name}),
    "get_rollout": lambda a: Ask("GET", a.rollout),
    "rollout_forecast": lambda a: Ask(
        "GET", f"{V1}/forecast", query={**a.ref(), "traffic_per_s": 50, "runs": 1}
    ),
    "explain_rollout": lambda a: Ask("GET", f"{a.rollout}/explanation"),
    "get_verdict": lambda a: Ask("GET", f"{a.rollout}/verdict"),
    "endpoint_verdict": lambda a: Ask("GET", f"{a.endpoint}/rollout/verdict"),
    "ask_verdict": lambda a: Ask("POST", f"{a.endpoint}/rollout/verdict", {"name": "churn"}),
    "judge_counts": lambda a: Ask("POST", f"{V1}/verdicts", {"ticks": []}),
    "simulate_rollout": lambda a: Ask("POST", f"{a.rollout}/simulation", {}),
    "prepare_drill": lambda a: Ask("GET", f"{a.endpoint}/drill"),
    "begin_drill": lambda a: Ask("POST", f"{a.endpoint}/drill", WHY),
    "record_drill": lambda a: Ask("POST", f"{a.endpoint}/drills", {"measured": MEASURED, **WHY}),
    "report_delivery": lambda a: Ask("GET", f"{V1}/reports/delivery", query={"model": a.name}),
    "gateway_table": lambda a: Ask("GET", f"{V1}/gateway/table"),
    "gateway_report": lambda a: Ask("POST", f"{V1}/gateway/reports", REPORT),
    "gateway_blob": lambda a: Ask("GET", f"{V1}/gateway/blobs/{digest_of(f'{a.name}3'.encode())}"),
    "list_webhooks": lambda a: Ask("GET", f"{V1}/webhooks", query={"project": a.project}),
    "create_webhook": lambda a: Ask("POST", f"{V1}/webhooks", {"project": a.project, **HOOK}),
    "get_webhook": lambda a: Ask("GET", a.webhook),
    "change_webhook": lambda a: Ask("PATCH", a.webhook, {"description": "new"}),
    "delete_webhook": lambda a: Ask("DELETE", a.webhook),
    "enable_webhook": lambda a: Ask("POST", f"{a.webhook}/enable", {}),
    "disable_webhook": lambda a: Ask("POST", f"{a.webhook}/disable", WHY),
    "rotate_webhook": lambda a: Ask("POST", f"{a.webhook}/secret"),
    "test_webhook": lambda a: Ask("POST", f"{a.webhook}/test", {}),
    "list_deliveries": lambda a: Ask("GET", f"{a.webhook}/deliveries"),
    "replay_webhook": lambda a: Ask("POST", f"{a.webhook}/replay", {"after": 0}),
    "import_batch": lambda a: Ask("POST", f"{V1}/imports", {"project": a.project, **BATCH}),
    "import_summary": lambda a: Ask("GET", f"{V1}/imports", query={"source": "elsewhere"}),
    "imported_files": lambda a: Ask("GET", f"{V1}/imports/files", query={"owner": "run", "id": a.run}),
    "missing_files": lambda a: Ask("POST", f"{V1}/imports/files/missing", {"digests": [FILE["digest"]]}),
    "send_file": lambda a: Ask("PUT", f"{V1}/imports/file", query=BYTES, raw=b"abc"),
    "list_events": lambda a: Ask("GET", f"{V1}/audit/events", query={"model": a.name}),
    "verify_audit": lambda a: Ask("GET", f"{V1}/audit/verification"),
    "export_audit": lambda a: Ask("GET", f"{V1}/audit/export"),
    "whoami": lambda a: Ask("GET", f"{V1}/whoami"),
    "list_principals": lambda a: Ask("GET", f"{V1}/principals"),
    "create_principal": lambda a: Ask("POST", f"{V1}/principals", {"name": "somebody"}),
    "disable_principal": lambda a: Ask("POST", f"{V1}/principals/{a.person}/disable"),
    "list_tokens": lambda a: Ask("GET", f"{V1}/tokens"),
    "create_token": lambda a: Ask("POST", f"{V1}/tokens", {"label": "for viewer", "principal": a.person}),
    "revoke_token": lambda a: Ask("DELETE", a.token),
    "list_grants": lambda a: Ask("GET", f"{V1}/grants"),
    "add_grant": lambda a: Ask(
        "POST", f"{V1}/grants", {"principal": a.person, "role": "viewer", "project": a.project}
    ),
    "remove_grant": lambda a: Ask("DELETE", f"{V1}/grants/{a.world.grant_ids.get(a.person, 'grt_nothing')}"),
    "health": lambda a: Ask("GET", "/health"),
    "ready": lambda a: Ask("GET", "/ready"),
    "metrics": lambda a: Ask("GET", "/metrics"),
    "openapi": lambda a: Ask("GET", "/openapi.json"),
}
"""One request for each operation."""

HOOK = {"name": "hook", "url": "https://8.8.8.8/", "events": ["stage.*"]}
FILE = {"path": "model.bin", "size_bytes": 3, "digest": digest_of(b"abc")}
BYTES = {"digest": FILE["digest"], "size_bytes": 3}
BATCH = {"source": "elsewhere", "experiments": [{"id": "7", "name": "moved", "creation_time": 0}]}
MEASURED = {
    "gateway": "gw-1", "took_ms": 0.4, "confirmed_ms": 0.9, "back_ms": 0.8, "hold_s": 0.5, "live": True
}  # fmt: skip
STAGES = {
    "stages": [
        {"name": "none"},
        {"name": "staging", "exclusive": True},
        {"name": "production", "exclusive": True, "protected": True},
        {"name": "archived"},
    ],
    "transitions": [["none", "staging"], ["staging", "production"], ["production", "archived"]],
    "displaced_to": "archived",
}
POLICY = b"""
schema: modelkeep.policy/v1
name: ours
stages:
  staging: {gates: [{gate: files_verified}]}
  production: {gates: [{gate: files_verified}, {gate: signature}], approvals: {count: 1}}
"""
REPORT = {"gateway": "gw-1", "table": 0, "url": "http://127.0.0.1:1", "sent_at": "2026-01-25T14:03:00Z"}
