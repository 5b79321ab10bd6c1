"""The JSON verbs: each takes an act and a decoded call, calls one service method, and returns its shape.

No decision is made here and no SQL, file or status code appears; the rows that bind these functions to
addresses are in `app`. Bytes in and out are in `bytes_io`.
"""

from datetime import datetime
from typing import Any

from modelkeep import __version__
from modelkeep.core import codec, errors, values
from modelkeep.core.access import Verb
from modelkeep.core.answers import Done, Health
from modelkeep.core.plan import chosen, read_plan
from modelkeep.core.routing import OTHERS_MAX
from modelkeep.core.values import ModelName, Ref, parse_model_name, parse_ref
from modelkeep.service import renaming
from modelkeep.service.act import Act
from modelkeep.service.forecasts import Asked
from modelkeep.service.rollbacks import Rollbacks
from modelkeep.web.operations import Call

DONE = Done()


def _ref(call: Call) -> Ref:
    return parse_ref(call.query.ref)


def _model(text: str | None) -> ModelName | None:
    return parse_model_name(text) if text is not None else None


def _project(text: str | None) -> str | None:
    return values.check_name(text, "project") if text is not None else None


def _moment(text: str | None) -> datetime | None:
    return codec.parse_time(text) if text is not None else None


def _words(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated words; None stays None, which means all."""
    if text is None:
        return None
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _references(text: str | None) -> tuple[str, ...] | None:
    """Comma-separated references. A model's name may have commas in it, so what bears no mark of a reference
    yet belongs to what follows."""
    if text is None:
        return None
    found, begun = [], ""
    for part in text.split(","):
        begun += part
        if any(mark in begun for mark in ":@#"):
            found.append(begun.strip())
            begun = ""
        elif begun:
            begun += ","
    if begun.strip(", "):
        found.append(begun.strip())
    return tuple(found)


# ---------------------------------------------------------------------------------------------- catalog


def list_models(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.catalog.list_models(
        act,
        limit=q.limit,
        page_token=q.page_token,
        project=_project(q.project),
        filter_text=q.filter,
        order_text=q.order,
    )


def create_model(act: Act, call: Call) -> Any:
    b = call.body
    name = ModelName(values.check_name(b.project, "project"), values.check_model_name(b.name))
    return call.house.catalog.create_model(
        act, name, description=b.description, owner=b.owner, tags=b.tags, stages=b.stages
    )


def get_model(act: Act, call: Call) -> Any:
    return call.house.catalog.get_model(act, call.model)


def change_model(act: Act, call: Call) -> Any:
    return call.house.catalog.change_model(act, call.model, call.body)


def rename_model(act: Act, call: Call) -> Any:
    return renaming.rename(act, call.house.access, call.model, call.body.name)


def delete_model(act: Act, call: Call) -> Any:
    call.house.catalog.delete_model(act, call.model)
    return DONE


def set_stages(act: Act, call: Call) -> Any:
    return call.house.promotions.set_stages(act, call.model, call.body)


def list_versions(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.catalog.list_versions(act, call.model, limit=q.limit, page_token=q.page_token)


def search_versions(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.catalog.search_versions(
        act,
        limit=q.limit,
        page_token=q.page_token,
        project=_project(q.project),
        filter_text=q.filter,
        order_text=q.order,
    )


def get_version(act: Act, call: Call) -> Any:
    ref = _ref(call)
    if call.query.at is not None:
        ref = Ref(model=ref.model, selector=ref.selector, at=_moment(call.query.at))
    return call.house.catalog.get_version(act, ref)


def change_version(act: Act, call: Call) -> Any:
    return call.house.catalog.change_version(act, _ref(call), call.body)


def delete_version(act: Act, call: Call) -> Any:
    call.house.catalog.delete_version(act, _ref(call))
    return DONE


def yank_version(act: Act, call: Call) -> Any:
    return call.house.catalog.yank(act, _ref(call), call.body.reason)


def unyank_version(act: Act, call: Call) -> Any:
    return call.house.catalog.unyank(act, _ref(call), call.body.reason)


def set_alias(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.catalog.set_alias(
        act,
        call.model,
        call.path["alias"],
        parse_ref(b.ref),
        expect=b.expect,
        protected=b.protected,
        reason=b.reason,
        plan=chosen(b.plan, b.strategy),
        supersede=b.supersede,
    )


def delete_alias(act: Act, call: Call) -> Any:
    call.house.catalog.delete_alias(act, call.model, call.path["alias"])
    return DONE


def look_for_announced(call: Call) -> Any:
    """Ask the blob store, before any transaction, for what need not be sent again."""
    return call.house.catalog.announced_blobs(call.house.desk, call.context, call.model, call.body)


def look_for_sent(call: Call) -> Any:
    """The same, for what a draft's author was told is there."""
    return call.house.catalog.draft_blobs(call.house.desk, call.context, call.path["id"])


def begin_draft(act: Act, call: Call) -> Any:
    return call.house.catalog.begin_draft(act, call.model, call.body, call.prepared)


def preview_draft(act: Act, call: Call) -> Any:
    return call.house.catalog.preview(act, call.model, call.body)


def get_draft(act: Act, call: Call) -> Any:
    return call.house.catalog.get_draft(act, call.path["id"])


def cancel_draft(act: Act, call: Call) -> Any:
    call.house.catalog.cancel_draft(act, call.path["id"])
    return DONE


def finalize_draft(act: Act, call: Call) -> Any:
    return call.house.catalog.finalize(act, call.path["id"], call.prepared)


def list_files(act: Act, call: Call) -> Any:
    return call.house.catalog.manifest(act, _ref(call))


def compare(act: Act, call: Call) -> Any:
    q = call.query
    refs = _references(q.refs)
    return call.house.catalog.compare(
        act,
        call.model,
        metrics=_words(q.metrics),
        refs=tuple(parse_ref(text) for text in refs) if refs is not None else None,
    )


def best(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.catalog.best(
        act, call.model, q.metric, direction=q.direction, filter_text=q.filter, split=q.split
    )


def diff(act: Act, call: Call) -> Any:
    return call.house.catalog.diff(act, parse_ref(call.query.a), parse_ref(call.query.b))


def verify_version(call: Call) -> Any:
    return call.house.catalog.verify(call.house.desk, call.context, _ref(call))


def fsck(call: Call) -> Any:
    return call.house.catalog.fsck(call.house.desk, call.context)


# -------------------------------------------------------------------------------------------- promotion


def history(act: Act, call: Call) -> Any:
    return call.house.promotions.history(act, call.model, stage=call.query.stage, limit=call.query.limit)


def whatwas(act: Act, call: Call) -> Any:
    ref = _ref(call)
    return call.house.promotions.whatwas(act, ref, _moment(call.query.at) or ref.at or act.now)


def hash_for_gate(call: Call) -> Any:
    """Hash the files of the version in question, before any transaction; the gates ask for it."""
    return _hashed(call, parse_ref(call.query.ref), Verb.READ)


def hash_for_promotion(call: Call) -> Any:
    """The same, for who may promote it, and of the versions that the plan tests beside it."""
    ref, plan = parse_ref(call.body.ref), call.body.plan
    names = [variant.version for variant in plan.versions] if plan is not None else []
    refs = [ref, *(parse_ref(f"{ref.model}:{name}") for name in names[:OTHERS_MAX])]
    return [_hashed(call, each, Verb.PROMOTE) for each in refs]


def hash_for_request(call: Call) -> Any:
    """The same, for who may ask for its promotion."""
    return _hashed(call, parse_ref(call.body.ref), Verb.REQUEST)


def hash_for_review(call: Call) -> Any:
    """The same, for the version of the request under review."""
    request = call.house.desk.read(call.context, call.house.promotions.get_request, call.path["id"])
    return _hashed(call, Ref(model=request.model, selector=values.Numbered(request.number)), Verb.READ)


def _hashed(call: Call, ref: Ref, verb: Verb) -> bool | None:
    return call.house.catalog.files_verified(call.house.desk, call.context, ref, verb)


def gate(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.promotions.gate(act, parse_ref(q.ref), q.to, files_verified=call.prepared)


def promote(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.promotions.promote(
        act,
        parse_ref(b.ref),
        b.to,
        b.reason,
        request=b.request,
        ticket=b.ticket,
        plan=chosen(b.plan, b.strategy),
        supersede=b.supersede,
        files_verified=call.prepared[0],
        others_verified=call.prepared[1:],
    )


def open_request(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.promotions.open_request(
        act, parse_ref(b.ref), b.to, b.reason, ticket=b.ticket, files_verified=call.prepared
    )


def review(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.promotions.review(
        act,
        call.path["id"],
        b.vote,
        comment=b.comment,
        checks=b.checks,
        waive=b.waive,
        files_verified=call.prepared,
    )


def rollback(act: Act, call: Call) -> Any:
    b = call.body
    to = parse_ref(b.to) if b.to is not None else None
    return call.house.promotions.rollback(
        act, parse_model_name(b.model), b.reason, to=to, stage=b.stage, incident=b.incident, alias=b.alias
    )


def preview_rollback(act: Act, call: Call) -> Any:
    q = call.query
    to = parse_ref(q.to) if q.to is not None else None
    rollbacks = Rollbacks(call.house.catalog, call.house.rollouts)
    return rollbacks.preview(act, parse_model_name(q.model), to=to, stage=q.stage, alias=q.alias)


def clear_version(act: Act, call: Call) -> Any:
    return call.house.promotions.clear(act, _ref(call), call.body.reason)


def list_requests(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.promotions.list_requests(
        act, model=_model(q.model), state=q.state, limit=q.limit, page_token=q.page_token
    )


def get_request(act: Act, call: Call) -> Any:
    return call.house.promotions.get_request(act, call.path["id"])


def withdraw(act: Act, call: Call) -> Any:
    return call.house.promotions.withdraw(act, call.path["id"], call.body.reason)


def get_policy(act: Act, call: Call) -> Any:
    return call.house.promotions.get_policy(act, call.query.scope)


def read_policy(call: Call) -> Any:
    """Read the document before any transaction: nobody waits for its YAML."""
    return call.house.promotions.read_policy(call.house.desk, call.context, call.query.scope, call.body)


def set_policy(act: Act, call: Call) -> Any:
    return call.house.promotions.set_policy(act, call.query.scope, call.prepared)


# ---------------------------------------------------------------------------------------------- rollout


def put_endpoint(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.rollouts.put_endpoint(
        act,
        call.path["name"],
        parse_model_name(b.model),
        stage=b.stage,
        alias=b.alias,
        key_header=b.key_header,
        key_cookie=b.key_cookie,
        key_field=b.key_field,
        slow_ms=b.slow_ms,
        lease_s=b.lease_s,
        workers=b.workers,
        log_ppm=b.log_ppm,
        privacy=b.privacy,
        load=b.load,
        schema=b.schema,
        plan=b.plan,
    )


def get_endpoint(act: Act, call: Call) -> Any:
    return call.house.rollouts.get_endpoint(act, call.path["name"])


def list_endpoints(act: Act, call: Call) -> Any:
    return call.house.rollouts.list_endpoints(act, limit=call.query.limit, page_token=call.query.page_token)


def delete_endpoint(act: Act, call: Call) -> Any:
    call.house.rollouts.delete_endpoint(act, call.path["name"])
    return DONE


def rollout_status(act: Act, call: Call) -> Any:
    return call.house.rollouts.status(act, call.path["name"])


def rollout_abort(act: Act, call: Call) -> Any:
    return call.house.rollouts.abort(act, call.path["name"], call.body.reason)


def rollout_pause(act: Act, call: Call) -> Any:
    return call.house.rollouts.pause(act, call.path["name"], call.body.reason)


def rollout_resume(act: Act, call: Call) -> Any:
    return call.house.rollouts.resume(act, call.path["name"], call.body.reason)


def rollout_step(act: Act, call: Call) -> Any:
    return call.house.rollouts.step(act, call.path["name"], call.body.reason)


def list_rollouts(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.rollouts.list_rollouts(
        act, endpoint=q.endpoint, model=_model(q.model), limit=q.limit, page_token=q.page_token
    )


def get_rollout(act: Act, call: Call) -> Any:
    return call.house.rollouts.get_rollout(act, call.path["id"])


def explain_rollout(act: Act, call: Call) -> Any:
    return call.house.rollouts.explain(act, call.path["id"])


def rollout_forecast(act: Act, call: Call) -> Any:
    q = call.query
    asked = Asked(
        traffic_per_s=q.traffic_per_s,
        requests_per_caller=q.requests_per_caller,
        error_rate=q.error_rate,
        plan=read_plan(q.plan) if q.plan is not None else None,
        seed=q.seed,
        runs=q.runs,
    )
    if q.endpoint is not None and q.ref is None:
        return call.house.rollouts.forecast_any(act, q.endpoint, asked)
    if q.ref is None or q.endpoint is not None:
        raise errors.Invalid("Name a version ('ref') or an endpoint ('endpoint'), and not both.", field="ref")
    return call.house.rollouts.forecast(act, parse_ref(q.ref), q.to, asked)


def gateway_report(act: Act, call: Call) -> Any:
    return call.house.rollouts.report(act, call.body)


# ----------------------------------------------------------------------------- audit, access, the server


def list_events(act: Act, call: Call) -> Any:
    q = call.query
    return call.house.audit.log(
        act,
        after=q.after,
        limit=q.limit,
        model=_model(q.model),
        kind=q.kind,
        subject=q.subject,
        newest=q.newest,
    )


def verify_audit(call: Call) -> Any:
    return call.house.audit.verify(call.house.desk, call.context, call.query.head)


def whoami(act: Act, call: Call) -> Any:
    return call.house.access.whoami(act)


def list_principals(act: Act, call: Call) -> Any:
    return call.house.access.list_principals(act, limit=call.query.limit, page_token=call.query.page_token)


def create_principal(act: Act, call: Call) -> Any:
    return call.house.access.create_principal(act, call.body.name, call.body.kind)


def disable_principal(act: Act, call: Call) -> Any:
    return call.house.access.disable_principal(act, call.path["name"])


def list_tokens(act: Act, call: Call) -> Any:
    return call.house.access.list_tokens(act, limit=call.query.limit, page_token=call.query.page_token)


def create_token(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.access.create_token(
        act, label=b.label, principal=b.principal, expires_s=b.expires_s, verbs=b.verbs, project=b.project
    )


def revoke_token(act: Act, call: Call) -> Any:
    return call.house.access.revoke_token(act, call.path["id"])


def list_grants(act: Act, call: Call) -> Any:
    return call.house.access.list_grants(act, limit=call.query.limit, page_token=call.query.page_token)


def add_grant(act: Act, call: Call) -> Any:
    b = call.body
    return call.house.access.add_grant(
        act, principal=b.principal, role=b.role, project=b.project, model=b.model, effect=b.effect
    )


def remove_grant(act: Act, call: Call) -> Any:
    call.house.access.remove_grant(act, call.path["id"])
    return DONE


def health(call: Call) -> Health:
    """Alive, and no more: a store that is away is no reason to start the server anew."""
    return Health("ok", __version__)


def ready(act: Act, call: Call) -> Health:
    """Ready when the store answers, which opening this act has just shown."""
    return Health("ready", __version__)
