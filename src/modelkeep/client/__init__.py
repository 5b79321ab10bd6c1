"""The SDK's client: one method per operation of the server, under the operation's name, and the few verbs of
several.

The verbs stand in one file per column; here they become one class. It starts no server, keeps no state but
its connections, and reads no environment: `modelkeep.Client` does that and is what people import.
"""

from types import TracebackType
from typing import Self

from modelkeep.client.access import AccessVerbs
from modelkeep.client.delivery import DeliveryVerbs
from modelkeep.client.feedback import FeedbackVerbs
from modelkeep.client.imports import ImportVerbs
from modelkeep.client.promotion import PromotionVerbs
from modelkeep.client.registration import RegistrationVerbs
from modelkeep.client.transport import Transport
from modelkeep.client.verdicts import VerdictVerbs
from modelkeep.client.webhooks import WebhookVerbs

TIMEOUT_S = 60.0
"""How long an answer is waited for when nobody says."""


class Client(
    RegistrationVerbs,
    PromotionVerbs,
    FeedbackVerbs,
    VerdictVerbs,
    DeliveryVerbs,
    AccessVerbs,
    WebhookVerbs,
    ImportVerbs,
):
    """Speaks with one Modelkeep server. May be shared by threads; a `with` closes its connections.

    Any method may raise: NotAuthenticated and NotAllowed; ServerUnavailable and TimedOut when no answer
    comes; NotFound or Invalid and their kinds when an argument names nothing or is not what it should be.
    What else one raises stands beside it. Reads, and writes that the server recognises by their
    Idempotency-Key, are repeated within a budget when a connection breaks.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout_s: float = TIMEOUT_S, *, agent: str = "modelkeep"
    ) -> None:
        """
        Args:
            url: `http://HOST:PORT` of the server.
            token: what `modelkeep token create` printed; a local server needs none.
            timeout_s: how long to wait for an answer.
            agent: who asks, for the server's logs.

        Raises:
            InvalidSetting: the address or the token cannot be one.
        """
        super().__init__(Transport(url, token, timeout_s, agent=agent))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the client can be used again."""
        self.http.close()

    def __repr__(self) -> str:
        return f"<modelkeep client of {self.url}>"
