"""Which pages in browsers may ask a gateway (CORS): those of its own address, and of origins that its owner
names. Nobody else's: a page somewhere could otherwise ask what only this network may, or send feedback.

What is its own is not what `Host` says: whoever owns a name can have it resolve to this machine. Own are
loopback names, plain addresses (nobody can have one resolve elsewhere), the name it listens on and the one in
its `url`; the control plane's door goes by the same rule.

Callers that are no browsers send no `Origin` and never come here. Who a caller is, is the guard's part.
"""

import re
from urllib.parse import urlsplit

from modelkeep.core import addresses, errors, values
from modelkeep.serving.http import STATUS_LINES, HttpConnection, Request

ORIGINS_MAX = 100
"""Origins that one gateway lets in."""
PREFLIGHT_S = 600
"""For so long a browser may remember what it was told before it asked."""
_LOOPBACK = "localhost"
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
    """The origins that may ask.

    Args:
        allowed: origins of other pages.
        host: the address or name that the gateway listens on.
        url: the address by which callers reach it, where that is another.
    """

    def __init__(self, allowed: tuple[str, ...], *, host: str = _LOOPBACK, url: str | None = None) -> None:
        self._allowed = frozenset(origin.encode() for origin in allowed)
        self._own, name = _named(url or "")
        """As a browser names the pages of `url`: a proxy in front may put another `Host` into requests."""
        self._names = frozenset({_LOOPBACK, host.lower(), name})

    def refuses(self, request: Request, origin: bytes) -> bool:
        """Whether a page of this origin may not ask. Where it may, its answer will say so."""
        if origin in self._allowed:
            request.extra = (
                b"Access-Control-Allow-Origin: %b\r\nAccess-Control-Expose-Headers: %b\r\nVary: Origin\r\n"
                % (origin, _TOLD)
            )
            return False
        if origin and origin == self._own:
            return False
        try:
            page = urlsplit(origin.decode("latin-1"))
            name = page.hostname or ""
        except ValueError:
            return True
        if page.netloc.encode("latin-1") != request.headers.get(b"host"):
            return True
        return not name or (name not in self._names and not addresses.is_address(name))

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


def _named(url: str) -> tuple[bytes, str]:
    """An address as the origin that browsers send for it (in lower case, without the port that goes without
    saying), and its name; both empty where it is none."""
    try:
        parts = urlsplit(url.lower())
        name = parts.hostname
    except ValueError:
        return b"", ""
    if not name:
        return b"", ""
    usual = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return f"{parts.scheme}://{parts.netloc.removesuffix(usual)}".encode(), name
