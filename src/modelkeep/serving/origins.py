"""Which pages in browsers may ask a gateway (CORS): those of its own address, and of origins that its owner
names. Nobody else's: a page somewhere could otherwise ask what only this network may, or send feedback.

Callers that are no browsers send no `Origin` and never come here. Who a caller is, is the guard's part.
"""

import re
from urllib.parse import urlsplit

from modelkeep.core import errors, values
from modelkeep.serving.http import STATUS_LINES, HttpConnection, Request

ORIGINS_MAX = 100
"""Origins that one gateway lets in."""
PREFLIGHT_S = 600
"""For so long a browser may remember what it was told before it asked."""
_ORIGIN = re.compile(r"https?://[a-z0-9.-]{1,253}(:[0-9]{1,5})?|https?://\[[0-9a-f:.]{2,45}\](:[0-9]{1,5})?")
_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,500}")
_WANTED = b"access-control-request-method"
_TOLD = b"X-Modelkeep-Version, X-Modelkeep-Rollout, X-Request-Id, Retry-After"


def check_origins(origins: tuple[str, ...]) -> None:
    """Refuse what no browser would send as an origin.

    Raises:
        InvalidSetting: names the text and what an origin looks like.
    """
    if len(origins) > ORIGINS_MAX:
        raise errors.InvalidSetting(
            f"A gateway lets pages of at most {ORIGINS_MAX} origins ask.", field="gateway_cors_origins"
        )
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise errors.InvalidSetting(
                f"{values.quoted(origin, 80)} is no origin; write one as https://app.example.com, in lower "
                "case and without a path.",
                field="gateway_cors_origins",
            )


class Origins:
    """The origins that may ask."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)

    def refuses(self, request: Request, origin: bytes) -> bool:
        """Whether a page of this origin may not ask. Where it may, its answer will say so."""
        if origin in self._allowed:
            request.extra = (
                b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Expose-Headers: %b\r\nVary: Origin\r\n"
                % (origin, _TOLD)
            )
            return False
        try:
            own = urlsplit(origin.decode("latin-1")).netloc.encode("latin-1")
        except ValueError:
            return True
        return not own or own != request.headers.get(b"host")

    def preflight(self, connection: HttpConnection, request: Request) -> bool:
        """Tell a browser what it may ask, before it does. Returns whether that was the question."""
        if request.method != b"OPTIONS" or _WANTED not in request.headers or not request.extra:
            return False
        wanted = request.headers.get(b"access-control-request-headers", b"")
        names = b"Access-Control-Allow-Headers: %b\r\n" % wanted if _NAMES.fullmatch(wanted) else b""
        connection.answer(
            b"%bAccess-Control-Allow-Methods: GET, POST\r\n%bAccess-Control-Max-Age: %d\r\n"
            % (STATUS_LINES[204], names, PREFLIGHT_S),
            b"",
        )
        return True
