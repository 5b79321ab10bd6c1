"""The application: every route on one page, and the door in front of them.

At the door: the host allow-list, and the cross-origin rule (a page of another origin must not act with a
browser's reach to this machine). Nothing else is wrapped around a request.
"""

from typing import Any
from urllib.parse import urlsplit

from modelkeep.core import addresses, answers, codec, compare, errors
from modelkeep.core.access import Grant, Principal, TokenInfo
from modelkeep.core.catalog import (
    Draft,
    DraftSpec,
    Manifest,
    ModelChange,
    ModelVersion,
    RegisteredModel,
    StageGraph,
)
from modelkeep.core.delivery import DeliveryReport
from modelkeep.core.drill import Drill, DrillPlan
from modelkeep.core.imports import ImportAnswer, ImportBatch, ImportedFiles, ImportSummary, MissingFiles
from modelkeep.core.observation import GatewayReply, GatewayReport
from modelkeep.core.promotion import PromotionRequest
from modelkeep.core.rollout import Endpoint, Rollout
from modelkeep.core.routing import RoutingTable
from modelkeep.core.simulation import Simulation
from modelkeep.core.verdicts import CountsVerdict, Question, RolloutVerdict
from modelkeep.core.webhooks import MadeWebhook, NewWebhook, Replayed, Trial, Webhook, WebhookChange
from modelkeep.service import access, catalog, promotion, rollout
from modelkeep.service.house import House
from modelkeep.service.webhooks import DeliveryPage, WebhookPage
from modelkeep.web import (
    api,
    bytes_io,
    delivery,
    drills,
    imports,
    openapi,
    requests,
    shapes,
    uploads,
    verdicts,
    webhooks,
)
from modelkeep.web.dispatch import Bound, Dispatcher
from modelkeep.web.exchange import Answer, Body
from modelkeep.web.languages import LANGUAGES, language_of
from modelkeep.web.mlflow.rows import ROWS as MLFLOW_OPERATIONS
from modelkeep.web.operations import Mode, Operation, Receive, Scope, Send
from modelkeep.web.routes import Routes

V1 = "/api/v1"
MODEL = V1 + "/models/{project}/{model}"
ENDPOINT = V1 + "/endpoints/{name}"
WEBHOOK = V1 + "/webhooks/{id}"
READ, WRITE, SLOW, TASK, STREAM = Mode.READ, Mode.WRITE, Mode.SLOW, Mode.TASK, Mode.STREAM
PLAIN = Mode.PLAIN


def _row(
    name: str, method: str, path: str, mode: Mode, handler: Any, summary: str, answer: Any, **more: Any
) -> Operation:
    return Operation(
        name=name,
        method=method,
        path=path,
        mode=mode,
        handler=handler,
        summary=summary,
        answer=answer,
        **more,
    )


# fmt: off
OPERATIONS: tuple[Operation, ...] = (
    # the versions and models of the catalog
    _row("get_version", "GET", V1 + "/version", READ, api.get_version, "One version by reference",
         ModelVersion, query=shapes.RefAtQuery),
    _row("get_model", "GET", MODEL, READ, api.get_model, "One registered model", RegisteredModel),
    _row("list_models", "GET", V1 + "/models", READ, api.list_models, "Registered models",
         catalog.ModelPage, query=shapes.SearchQuery),
    _row("create_model", "POST", V1 + "/models", WRITE, api.create_model, "Register a model's name",
         RegisteredModel, body=shapes.NewModel, status=201),
    _row("change_model", "PATCH", MODEL, WRITE, api.change_model, "Change description, owner or tags",
         RegisteredModel, body=ModelChange),
    _row("rename_model", "POST", MODEL + "/rename", WRITE, api.rename_model,
         "Give a model another name; everything it has goes with it", RegisteredModel, body=shapes.NewName),
    _row("delete_model", "DELETE", MODEL, WRITE, api.delete_model, "Delete a model", answers.Done),
    _row("set_stages", "PUT", MODEL + "/stages", WRITE, api.set_stages, "Set a model's stage graph",
         RegisteredModel, body=StageGraph),
    _row("list_versions", "GET", MODEL + "/versions", READ, api.list_versions,
         "Versions of a model, newest first",
         catalog.VersionPage, query=shapes.ListQuery),
    _row("search_versions", "GET", V1 + "/versions", SLOW, api.search_versions,
         "Versions that a filter selects",
         catalog.VersionPage, query=shapes.SearchQuery),
    _row("change_version", "PATCH", V1 + "/version", WRITE, api.change_version, "Change description or tags",
         ModelVersion, query=shapes.RefQuery, body=ModelChange),
    _row("delete_version", "DELETE", V1 + "/version", WRITE, api.delete_version, "Delete a version",
         answers.Done, query=shapes.RefQuery),
    _row("yank_version", "POST", V1 + "/version/yank", WRITE, api.yank_version,
         "Have a version passed over by @latest and ranges",
         ModelVersion, query=shapes.RefQuery, body=shapes.Because),
    _row("unyank_version", "POST", V1 + "/version/unyank", WRITE, api.unyank_version,
         "Let a yanked version be chosen again",
         ModelVersion, query=shapes.RefQuery, body=shapes.Because),
    _row("set_alias", "PUT", MODEL + "/aliases/{alias}", WRITE, api.set_alias, "Point an alias at a version",
         answers.AliasMove, body=shapes.NewAlias),
    _row("delete_alias", "DELETE", MODEL + "/aliases/{alias}", WRITE, api.delete_alias,
         "Delete an alias", answers.Done),
    _row("compare", "GET", MODEL + "/compare", SLOW, api.compare, "Versions side by side",
         compare.Comparison, query=shapes.CompareQuery),
    _row("best", "GET", MODEL + "/best", SLOW, api.best, "The best version by a metric",
         compare.Best, query=shapes.BestQuery),
    _row("diff", "GET", V1 + "/diff", READ, api.diff, "What changed from one version to another",
         compare.VersionDiff, query=shapes.DiffQuery),
    # registration: announce, send bytes, finalize
    _row("begin_draft", "POST", MODEL + "/drafts", WRITE, api.begin_draft, "Announce a version",
         Draft, body=DraftSpec, status=201, before=api.look_for_announced),
    _row("preview_draft", "POST", MODEL + "/drafts/preview", READ, api.preview_draft,
         "What registering would come to; nothing is written",
         answers.Preview, body=DraftSpec),
    _row("get_draft", "GET", V1 + "/drafts/{id}", READ, api.get_draft, "How far a registration is", Draft),
    _row("cancel_draft", "DELETE", V1 + "/drafts/{id}", WRITE, api.cancel_draft,
         "Give up a registration", answers.Done),
    _row("upload_file", "PUT", V1 + "/drafts/{id}/file", STREAM, uploads.upload, "Send the bytes of a file",
         answers.UploadPlan, query=shapes.UploadQuery),
    _row("finalize_draft", "POST", V1 + "/drafts/{id}/finalize", WRITE, api.finalize_draft,
         "Make the version",
         answers.Registration, before=api.look_for_sent),
    _row("list_files", "GET", V1 + "/version/files", READ, api.list_files, "The files of a version",
         Manifest, query=shapes.RefQuery),
    _row("download_file", "GET", V1 + "/version/file", STREAM, bytes_io.download, "The bytes of a file",
         bytes, query=shapes.FileQuery),
    _row("verify_version", "POST", V1 + "/version/verify", TASK, api.verify_version,
         "Hash a version's bytes again",
         answers.VerifyReport, query=shapes.RefQuery),
    _row("fsck", "POST", V1 + "/fsck", TASK, api.fsck, "Hash everything again, find what dangles",
         answers.FsckReport),
    # promotion
    _row("gate", "GET", V1 + "/gate", READ, api.gate, "Whether a version may enter a stage, and why",
         answers.GateReport, query=shapes.GateQuery, before=api.hash_for_gate),
    _row("promote", "POST", V1 + "/promotions", WRITE, api.promote, "Move a version to a stage",
         answers.Promotion, body=shapes.NewPromotion, status=201, before=api.hash_for_promotion),
    _row("rollback", "POST", V1 + "/rollbacks", WRITE, api.rollback, "Take a model back",
         answers.Rollback, body=shapes.NewRollback, status=201),
    _row("preview_rollback", "GET", V1 + "/rollbacks/preview", READ, api.preview_rollback,
         "Where a rollback would go now; nothing is changed",
         answers.Rollback, query=shapes.RollbackQuery),
    _row("clear_version", "POST", V1 + "/version/clear", WRITE, api.clear_version,
         "Let a taken-back version return",
         ModelVersion, query=shapes.RefQuery, body=shapes.Because),
    _row("open_request", "POST", V1 + "/requests", WRITE, api.open_request, "Ask for a promotion",
         PromotionRequest, body=shapes.NewRequest, status=201, before=api.hash_for_request),
    _row("list_requests", "GET", V1 + "/requests", READ, api.list_requests, "Promotion requests",
         promotion.RequestPage, query=shapes.RequestsQuery),
    _row("get_request", "GET", V1 + "/requests/{id}", READ, api.get_request, "One promotion request",
         PromotionRequest),
    _row("review", "POST", V1 + "/requests/{id}/reviews", WRITE, api.review, "Approve, reject or comment",
         PromotionRequest, body=shapes.NewReview, before=api.hash_for_review),
    _row("withdraw", "POST", V1 + "/requests/{id}/withdrawal", WRITE, api.withdraw, "Withdraw a request",
         PromotionRequest, body=shapes.Because),
    _row("history", "GET", MODEL + "/history", READ, api.history, "Who was in which stage, and what happened",
         answers.History, query=shapes.HistoryQuery),
    _row("whatwas", "GET", V1 + "/whatwas", READ, api.whatwas, "What was in a stage at a moment, and why",
         answers.WhatWas, query=shapes.RefAtQuery),
    _row("get_policy", "GET", V1 + "/policy", READ, api.get_policy, "The policy that holds",
         answers.PolicyRecord, query=shapes.ScopeQuery),
    _row("set_policy", "PUT", V1 + "/policy", WRITE, api.set_policy, "Set a policy (YAML or JSON)",
         answers.PolicyRecord, query=shapes.ScopeQuery, body=bytes, raw=True, before=api.read_policy),
    # rollout
    _row("list_endpoints", "GET", V1 + "/endpoints", READ, api.list_endpoints, "Endpoints",
         rollout.EndpointPage, query=shapes.ListQuery),
    _row("get_endpoint", "GET", ENDPOINT, READ, api.get_endpoint, "One endpoint", Endpoint),
    _row("put_endpoint", "PUT", ENDPOINT, WRITE, api.put_endpoint, "Create or change an endpoint",
         Endpoint, body=shapes.NewEndpoint),
    _row("delete_endpoint", "DELETE", ENDPOINT, WRITE, api.delete_endpoint, "Delete an endpoint",
         answers.Done),
    _row("rollout_status", "GET", ENDPOINT + "/rollout", READ, api.rollout_status,
         "How an endpoint's traffic stands",
         answers.RolloutStatus),
    _row("rollout_abort", "POST", ENDPOINT + "/rollout/abort", WRITE, api.rollout_abort,
         "Give traffic back to stable",
         Rollout, body=shapes.Because),
    _row("rollout_pause", "POST", ENDPOINT + "/rollout/pause", WRITE, api.rollout_pause, "Stay at this step",
         Rollout, body=shapes.Because),
    _row("rollout_resume", "POST", ENDPOINT + "/rollout/resume", WRITE, api.rollout_resume, "Go on", Rollout,
         body=shapes.Because),
    _row("rollout_step", "POST", ENDPOINT + "/rollout/step", WRITE, api.rollout_step,
         "Go to the next step now",
         Rollout, body=shapes.Because),
    _row("list_rollouts", "GET", V1 + "/rollouts", READ, api.list_rollouts, "Rollouts, newest first",
         rollout.RolloutPage, query=shapes.RolloutsQuery),
    _row("get_rollout", "GET", V1 + "/rollouts/{id}", READ, api.get_rollout, "One rollout", Rollout),
    _row("explain_rollout", "GET", V1 + "/rollouts/{id}/explanation", SLOW, api.explain_rollout,
         "Recompute a rollout's evidence from its counts", answers.Explanation),
    _row("rollout_forecast", "GET", V1 + "/forecast", SLOW, api.rollout_forecast,
         "What a rollout may expect before it starts", answers.RolloutForecast, query=shapes.ForecastQuery),
    _row("gateway_table", "GET", V1 + "/gateway/table", STREAM, bytes_io.gateway_table,
         "The routing table, when newer",
         RoutingTable, query=shapes.TableQuery),
    _row("gateway_report", "POST", V1 + "/gateway/reports", WRITE, api.gateway_report, "What a gateway saw",
         GatewayReply, body=GatewayReport),
    _row("gateway_blob", "GET", V1 + "/gateway/blobs/{digest}", STREAM, bytes_io.gateway_blob,
         "Bytes for a gateway",
         bytes),
    _row("get_verdict", "GET", V1 + "/rollouts/{id}/verdict", READ, verdicts.get_verdict,
         "What a rollout's evidence says; with a gate, yes or no by the status",
         RolloutVerdict, query=verdicts.VerdictQuery),
    _row("endpoint_verdict", "GET", ENDPOINT + "/rollout/verdict", READ, verdicts.endpoint_verdict,
         "The same of an endpoint's rollout under way, or its last one",
         RolloutVerdict, query=verdicts.VerdictQuery),
    _row("ask_verdict", "POST", ENDPOINT + "/rollout/verdict", READ, verdicts.endpoint_verdict,
         "The same for controllers that can only post; what they send is not looked at",
         RolloutVerdict, query=verdicts.VerdictQuery, body=bytes, raw=True),
    _row("judge_counts", "POST", V1 + "/verdicts", SLOW, verdicts.judge_counts,
         "A verdict on counts of another router; nothing of it is kept",
         CountsVerdict, query=verdicts.VerdictQuery, body=Question),
    _row("simulate_rollout", "POST", V1 + "/rollouts/{id}/simulation", SLOW, verdicts.simulate_rollout,
         "What would have come of a rollout under another plan; nothing is changed",
         Simulation, body=verdicts.Trial),
    _row("prepare_drill", "GET", ENDPOINT + "/drill", READ, drills.prepare_drill,
         "Whether a rollback of an endpoint can be rehearsed now", DrillPlan),
    _row("begin_drill", "POST", ENDPOINT + "/drill", WRITE, drills.begin_drill,
         "Begin a rehearsed rollback; one that is refused is recorded too",
         DrillPlan, body=drills.BegunDrill),
    _row("record_drill", "POST", ENDPOINT + "/drills", WRITE, drills.record_drill,
         "Keep what a gateway measured in a rehearsed rollback",
         Drill, body=drills.DoneDrill, status=201),
    _row("report_delivery", "GET", V1 + "/reports/delivery", SLOW, delivery.report_delivery,
         "Deployment figures of a span, from the events",
         DeliveryReport, query=delivery.DeliveryQuery),
    # webhooks
    _row("list_webhooks", "GET", V1 + "/webhooks", READ, webhooks.list_webhooks, "Webhooks",
         WebhookPage, query=webhooks.WebhooksQuery),
    _row("create_webhook", "POST", V1 + "/webhooks", WRITE, webhooks.create_webhook,
         "Make a webhook; a secret that is made for it is shown once",
         MadeWebhook, body=NewWebhook, status=201, secret=True, before=webhooks.look_at_new),
    _row("get_webhook", "GET", WEBHOOK, READ, webhooks.get_webhook, "One webhook", Webhook),
    _row("change_webhook", "PATCH", WEBHOOK, WRITE, webhooks.change_webhook, "Change a webhook",
         Webhook, body=WebhookChange, before=webhooks.look_at_change),
    _row("delete_webhook", "DELETE", WEBHOOK, WRITE, webhooks.delete_webhook, "Delete a webhook",
         answers.Done),
    _row("enable_webhook", "POST", WEBHOOK + "/enable", WRITE, webhooks.enable_webhook,
         "Have a webhook go on from where it stood", Webhook, body=webhooks.Why),
    _row("disable_webhook", "POST", WEBHOOK + "/disable", WRITE, webhooks.disable_webhook,
         "Have a webhook wait", Webhook, body=webhooks.Why),
    _row("rotate_webhook", "POST", WEBHOOK + "/secret", WRITE, webhooks.rotate_webhook,
         "Make another secret, shown once; the former one signs along for a day",
         MadeWebhook, secret=True),
    _row("test_webhook", "POST", WEBHOOK + "/test", TASK, webhooks.test_webhook,
         "Send an example to the receiver", Trial, body=webhooks.Trying),
    _row("list_deliveries", "GET", WEBHOOK + "/deliveries", READ, webhooks.list_deliveries,
         "What was sent, with every attempt", DeliveryPage, query=webhooks.DeliveriesQuery),
    _row("replay_webhook", "POST", WEBHOOK + "/replay", WRITE, webhooks.replay_webhook,
         "Send the messages of an event again, or all after one", Replayed, body=webhooks.Replaying),
    # audit and access
    _row("list_events", "GET", V1 + "/audit/events", READ, api.list_events, "The audit log",
         answers.EventPage, query=shapes.EventsQuery),
    _row("verify_audit", "GET", V1 + "/audit/verification", TASK, api.verify_audit,
         "Walk the chain of all events",
         answers.Verification, query=shapes.HeadQuery),
    _row("export_audit", "GET", V1 + "/audit/export", STREAM, bytes_io.export_audit, "The audit log as lines",
         bytes, query=shapes.ExportQuery),
    _row("whoami", "GET", V1 + "/whoami", READ, api.whoami, "Who you are, and what you may do",
         answers.WhoAmI),
    _row("list_principals", "GET", V1 + "/principals", READ, api.list_principals, "People and programs",
         access.PrincipalPage, query=shapes.ListQuery),
    _row("create_principal", "POST", V1 + "/principals", WRITE, api.create_principal,
         "Add a person or program",
         Principal, body=shapes.NewPrincipal, status=201),
    _row("disable_principal", "POST", V1 + "/principals/{name}/disable", WRITE, api.disable_principal,
         "Shut a person or program out", Principal),
    _row("list_tokens", "GET", V1 + "/tokens", READ, api.list_tokens, "Tokens, without their secrets",
         access.TokenPage, query=shapes.ListQuery),
    _row("create_token", "POST", V1 + "/tokens", WRITE, api.create_token,
         "Make a token; its secret is shown once",
         answers.NewToken, body=shapes.NewTokenBody, status=201, secret=True),
    _row("revoke_token", "DELETE", V1 + "/tokens/{id}", WRITE, api.revoke_token, "Revoke a token", TokenInfo),
    _row("list_grants", "GET", V1 + "/grants", READ, api.list_grants, "Who holds which role where",
         access.GrantPage, query=shapes.ListQuery),
    _row("add_grant", "POST", V1 + "/grants", WRITE, api.add_grant, "Give or deny a role", Grant,
         body=shapes.NewGrant, status=201),
    _row("remove_grant", "DELETE", V1 + "/grants/{id}", WRITE, api.remove_grant, "Remove a grant",
         answers.Done),
    # moving in
    _row("import_batch", "POST", V1 + "/imports", WRITE, imports.import_batch,
         "Take in a batch from another registry",
         ImportAnswer, body=ImportBatch, before=imports.look_for_files),
    _row("import_summary", "GET", V1 + "/imports", READ, imports.import_summary,
         "How much came from another registry",
         ImportSummary, query=imports.SourceQuery),
    _row("imported_files", "GET", V1 + "/imports/files", READ, imports.imported_files,
         "The files that a run or logged model keeps already",
         ImportedFiles, query=imports.OwnerQuery),
    _row("missing_files", "POST", V1 + "/imports/files/missing", TASK, imports.missing_files,
         "Which bytes are still to be sent",
         MissingFiles, body=imports.AskedFiles),
    _row("send_file", "PUT", V1 + "/imports/file", STREAM, imports.send_file, "Send the bytes of a file",
         imports.SentFile, query=imports.BytesQuery),
    # the server itself
    _row("health", "GET", "/health", PLAIN, api.health, "Alive", answers.Health, open=True),
    _row("ready", "GET", "/ready", READ, api.ready, "Alive, and the store answers",
         answers.Health, open=True),
    _row("metrics", "GET", "/metrics", STREAM, openapi.metrics,
         "Prometheus metrics of the server", bytes, open=True),
    _row("openapi", "GET", "/openapi.json", STREAM, openapi.document, "This document", bytes, open=True),
)
# fmt: on

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_UNSAFE = frozenset({"POST", "PUT", "PATCH", "DELETE"})


def create_app(house: House, *, hosts: tuple[str, ...] = ()) -> "Application":
    """The ASGI application.

    Args:
        hosts: names, besides this machine's loopback names and any plain address, under which the server may
            be addressed; `*` for any.
    """
    return Application(house, OPERATIONS + MLFLOW_OPERATIONS, hosts)


class Application:
    """All operations over one house, as ASGI. It lives as long as one event loop."""

    def __init__(self, house: House, operations: tuple[Operation, ...], hosts: tuple[str, ...]) -> None:
        self.dispatcher = Dispatcher(house)
        self.dispatcher.openapi = codec.encode(openapi.build(operations))
        self._any_host = "*" in hosts
        self._hosts = frozenset(name.lower().encode("latin-1") for name in _LOOPBACK + hosts)
        self._routes: Routes[Bound] = Routes()
        for row in operations:
            bound = Bound(self.dispatcher, row, LANGUAGES[row.door])
            self._routes.add(row.method, row.path, bound)
            if row.method == "GET" and row.mode is not Mode.STREAM:
                self._routes.add("HEAD", row.path, bound)  # the server leaves the body out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        assert scope["type"] == "http", "nothing but HTTP is offered"
        method, headers = scope["method"], dict(scope["headers"])
        try:
            headers = requests.headers_of(scope["headers"])
            self._admit(method, scope["raw_path"], headers)
            bound, path = self._routes.find(method, scope["raw_path"])
        except errors.ModelkeepError as refused:
            render = language_of(scope["raw_path"]).render
            await Answer(send, requests.request_id(headers), render).problem(refused, Body(headers, receive))
            return
        await bound(scope, receive, send, headers, path)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The protocol by which a server says that it begins and ends."""
        await receive()
        self.dispatcher.committed.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.dispatcher.begin_closing()
        self.dispatcher.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _admit(self, method: str, raw_path: bytes, headers: dict[bytes, bytes]) -> None:
        """Let a request in.

        Raises:
            NotAllowed: it is addressed to a name that is none of ours (somebody's page may have its name
                resolve to this machine), or a page of another origin wants to change something.
        """
        host = headers.get(b"host", b"")
        if not self._any_host and host not in self._hosts and raw_path != b"/health":
            name = _name_of(host)
            if name not in self._hosts and not addresses.is_address(name.decode("latin-1")):
                shown = name[:100].decode("latin-1")
                raise errors.NotAllowed(
                    f"This server does not answer to the host name {shown!r}; add it to the setting "
                    "'host_names' to allow it."
                )
        if method in _UNSAFE and _is_foreign(headers, host):
            raise errors.NotAllowed("A page of another origin may not change anything here.")


def _name_of(host: bytes) -> bytes:
    name, _, port = host.rpartition(b":")
    return (name if name and port.isdigit() else host).lower()


def _is_foreign(headers: dict[bytes, bytes], host: bytes) -> bool:
    """Whether a browser says that another site sends this request; what is no browser says nothing."""
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin.decode("latin-1")).netloc.encode("latin-1") != host
    except ValueError:
        return True
