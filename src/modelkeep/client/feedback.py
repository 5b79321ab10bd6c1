"""The client's one word to a gateway: what became known of predictions. Predictions themselves are asked for
by plain HTTP.

It finds the gateway that answers for an endpoint, unless it is told one. What becomes of feedback is the
gateway's business.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from modelkeep.client.rollout import RolloutVerbs
from modelkeep.client.transport import Request, Transport, segment
from modelkeep.core import codec, errors
from modelkeep.core.feedback import LABELS_MAX, Label, Taken

AT_ONCE = 1_000
"""Labels sent in one request: many small answers instead of one that fails whole."""


class FeedbackVerbs(RolloutVerbs):
    """What became known."""

    def feedback(
        self,
        endpoint: str,
        request_id: str,
        label: Any,
        *,
        row: int = 0,
        at: datetime | None = None,
        gateway: str | None = None,
        callers_token: str | None = None,
    ) -> Taken:
        """Tell what became known of one prediction; as `feedback_many`."""
        one = Label(request_id=request_id, label=label, row=row, at=at)
        return self.feedback_many(endpoint, [one], gateway=gateway, callers_token=callers_token)

    def feedback_many(
        self,
        endpoint: str,
        labels: Iterable[Label],
        *,
        gateway: str | None = None,
        callers_token: str | None = None,
    ) -> Taken:
        """Tell what became known of predictions, however late. The same again changes nothing, another label
        for the same request and row takes the former one's place.

        Args:
            labels: each with the `X-Request-Id` that its answer carried.
            gateway: the address of the gateway; asked of the server when left out.
            callers_token: what callers of the gateway show, where they do.

        Returns:
            how many were new, changed and known.

        Raises:
            GatewayUnavailable: no gateway answers, or it cannot keep anything just now.
            Invalid, LimitExceeded: a label is none; names its place in its request of 1,000.
            InvalidState: the gateway keeps no prediction log.
        """
        assert AT_ONCE <= LABELS_MAX
        address = gateway or self._gateway_of(endpoint)
        transport = Transport(address, callers_token, self.http.timeout_s, agent="modelkeep-python")
        total = Taken()
        try:
            for part in _parts(labels):
                request = Request(
                    method="POST",
                    path=f"/endpoints/{segment(endpoint)}/feedback",
                    payload=codec.encode({"labels": part}),
                    headers={"Content-Type": "application/json"},
                )
                total = total.plus(self.read(transport.send(request), Taken))
        except errors.ServerUnavailable as problem:
            raise errors.GatewayUnavailable(
                f"No gateway answers at {address}; name another one."
            ) from problem
        finally:
            transport.close()
        return total

    def _gateway_of(self, endpoint: str) -> str:
        """The address of a gateway that answers for an endpoint. Raises GatewayUnavailable."""
        answering = [gateway.url for gateway in self.rollout_status(endpoint).gateways if gateway.answering]
        if not answering:
            raise errors.GatewayUnavailable(
                f"No gateway of {endpoint} answers; start one with 'modelkeep gateway', or name one."
            )
        return answering[0]


def _parts(labels: Iterable[Label]) -> Iterable[list[Label]]:
    part: list[Label] = []
    for label in labels:
        part.append(label)
        if len(part) == AT_ONCE:
            yield part
            part = []
    if part:
        yield part
