"""Rows of promotion requests and of the votes on them.

What a request leads to is decided by `core.promotion`; where versions stand is `promotion`'s part.
"""

from datetime import datetime
from typing import Any

from msgspec import structs
from sqlalchemy import bindparam, select, update

from modelkeep.core import codec
from modelkeep.core.promotion import Approval, PromotionRequest, RequestState
from modelkeep.store.schema import approvals, models, requests
from modelkeep.store.statements import Row, insert, json_text, one_of
from modelkeep.store.transaction import Transaction
from modelkeep.store.visibility import Visible, condition

_ADD_REQUEST = insert(requests)
_SAVE_REQUEST = (
    update(requests)
    .where(requests.c.id == bindparam("which"))
    .values(state=bindparam("now"), document=bindparam("text"), closed_at=bindparam("closed"))
)
_GET_REQUEST = select(requests.c.document).where(requests.c.id == bindparam("id"))
_OPEN_REQUEST = (
    select(requests.c.document)
    .where(
        requests.c.model_id == bindparam("model_id"),
        requests.c.state == RequestState.OPEN.value,
        requests.c.number == bindparam("number"),
        requests.c.stage == bindparam("stage"),
    )
    .limit(1)
)
_DUE = (
    select(requests.c.document)
    .where(requests.c.state == RequestState.OPEN.value, requests.c.expires_at <= bindparam("now"))
    .order_by(requests.c.expires_at)
    .limit(bindparam("limit"))
)
_REQUESTS = (
    select(requests.c.document)
    .where(requests.c.id < bindparam("before"))
    .order_by(requests.c.id.desc())
    .limit(bindparam("limit"))
)
_ADD_REVIEW = insert(approvals)
_DISMISS = (
    update(approvals)
    .where(approvals.c.request_id == bindparam("which"), approvals.c.position == bindparam("place"))
    .values(dismissed=bindparam("why"))
)
_REVIEWS = (
    select(approvals.c.request_id, approvals.c.document, approvals.c.dismissed)
    .where(one_of(approvals.c.request_id, "ids"))
    .order_by(approvals.c.request_id, approvals.c.position)
)


def add_request(tx: Transaction, model_id: str, request: PromotionRequest) -> None:
    """Store a new request, which has no reviews yet."""
    tx.put(
        _ADD_REQUEST,
        id=request.id,
        model_id=model_id,
        number=request.number,
        stage=request.to,
        state=request.state.value,
        document=_document(request),
        created_by=request.requested_by.name,
        created_at=codec.format_time(request.created_at),
        expires_at=codec.format_time(request.expires_at),
        closed_at=None,
    )


def save_request(tx: Transaction, request: PromotionRequest) -> None:
    """Store what changed in a request; its reviews have rows of their own."""
    tx.put(
        _SAVE_REQUEST,
        which=request.id,
        now=request.state.value,
        text=_document(request),
        closed=codec.format_time(request.closed_at) if request.closed_at is not None else None,
    )


def get_request(tx: Transaction, request_id: str) -> PromotionRequest | None:
    """One request with its reviews."""
    row = tx.one(_GET_REQUEST, id=request_id)
    return _requests(tx, [row])[0] if row else None


def open_request(tx: Transaction, model_id: str, number: int, stage: str) -> PromotionRequest | None:
    """The open request to move a version to a stage."""
    row = tx.one(_OPEN_REQUEST, model_id=model_id, number=number, stage=stage)
    return _requests(tx, [row])[0] if row else None


def due_requests(tx: Transaction, now: datetime, limit: int) -> list[PromotionRequest]:
    """Open requests whose time is over, the longest over first."""
    return _requests(tx, tx.all(_DUE, now=codec.format_time(now), limit=limit))


def list_requests(
    tx: Transaction,
    before: str,
    limit: int,
    *,
    visible: Visible,
    model_id: str | None = None,
    state: RequestState | None = None,
) -> list[PromotionRequest]:
    """Requests, the latest first, before an id; those of models that are not visible are left out."""
    query = _REQUESTS
    binds: dict[str, Any] = {}
    if model_id is not None:
        query = query.where(requests.c.model_id == bindparam("model_id"))
        binds["model_id"] = model_id
    if state is not None:
        query = query.where(requests.c.state == bindparam("state"))
        binds["state"] = state.value
    if not visible.everything:
        inside, more = condition(visible)
        query = query.join(models, models.c.id == requests.c.model_id).where(inside)
        binds |= more
    return _requests(tx, tx.all(query, before=before, limit=limit, **binds))


def add_review(tx: Transaction, request_id: str, position: int, review: Approval) -> None:
    """Store a vote or comment.

    Raises:
        ConstraintFailed: the person has another vote that still counts; dismiss it first.
    """
    tx.put(
        _ADD_REVIEW,
        request_id=request_id,
        position=position,
        principal=review.by.name,
        vote=review.vote.value,
        at=codec.format_time(review.at),
        dismissed=review.dismissed,
        document=json_text(review),
    )


def dismiss_review(tx: Transaction, request_id: str, position: int, why: str) -> None:
    """Make a vote count no more."""
    tx.put(_DISMISS, which=request_id, place=position, why=why)


def _document(request: PromotionRequest) -> str:
    return json_text(structs.replace(request, reviews=()))


def _requests(tx: Transaction, rows: list[Row]) -> list[PromotionRequest]:
    """Requests with their reviews in the order they came."""
    found = [codec.decode(row[0], PromotionRequest) for row in rows]
    if not found:
        return []
    reviews: dict[str, list[Approval]] = {request.id: [] for request in found}
    for request_id, document, dismissed in tx.all(_REVIEWS, ids=list(reviews)):
        review = codec.decode(document, Approval)
        reviews[request_id].append(structs.replace(review, dismissed=dismissed))
    return [structs.replace(request, reviews=tuple(reviews[request.id])) for request in found]
