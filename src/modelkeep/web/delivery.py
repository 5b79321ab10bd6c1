"""The operation of deployment figures: it takes a decoded call, calls one service function, and returns its
shape. No decision is made here."""

from typing import Any

from modelkeep.core import codec, values
from modelkeep.core.values import parse_model_name
from modelkeep.service import delivery
from modelkeep.service.act import Act
from modelkeep.web.operations import Call
from modelkeep.web.shapes import ModelText, NameText, Shape, TimeText


class DeliveryQuery(Shape, frozen=True, kw_only=True):
    """The span, and whose deployments: one model's, one project's, or all that one may read; to one stage,
    behind one alias, or to production and behind all aliases."""

    since: TimeText | None = None
    until: TimeText | None = None
    model: ModelText | None = None
    project: NameText | None = None
    stage: NameText | None = None
    alias: NameText | None = None


def report_delivery(act: Act, call: Call) -> Any:
    """Deployment figures."""
    q = call.query
    return delivery.report(
        act,
        since=codec.parse_time(q.since) if q.since is not None else None,
        until=codec.parse_time(q.until) if q.until is not None else None,
        model=parse_model_name(q.model) if q.model is not None else None,
        project=values.check_name(q.project, "project") if q.project is not None else None,
        stage=q.stage,
        alias=q.alias,
    )
