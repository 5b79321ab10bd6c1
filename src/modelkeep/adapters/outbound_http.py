"""The one way out of the control plane: a POST to an address that somebody typed, guarded against being sent
inside.

A name is resolved here, every address that it has is judged (`core.addresses`), and the connection goes to
one of the judged addresses; nobody resolves the name a second time. The certificate is checked against the
name. Redirects are not followed, proxies of the environment are not asked, nothing is decompressed, and of an
answer at most 64 KiB are read, of which a hash is kept. Every step has a time limit, and all together have
one.

What it does not do: sign, try again, or know what is sent.
"""

import hashlib
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import closing
from email.utils import parsedate_to_datetime
from functools import cached_property
from ipaddress import ip_address

from modelkeep import __version__
from modelkeep.core import addresses, errors, values, webhooks
from modelkeep.core.addresses import Network
from modelkeep.core.webhooks import Sent, Target

CONNECT_S = 5.0
"""For a name to be resolved, and again for one connection with its handshake."""
TOTAL_S = 10.0
"""For a whole exchange up to the answer's head: a receiver has only to take the message."""
BODY_S = 2.0
"""For the answer's body, of which only a hash is kept."""
HEAD_MAX_BYTES = 32 * 1024
"""Bytes of an answer's head."""
BODY_MAX_BYTES = 64 * 1024
"""Bytes of an answer's body that are read."""
ADDRESSES_MAX = 16
"""Addresses of one name; more are a trick."""
TRIED_MAX = 3
"""Addresses of one name that are connected to, one after the other."""
RESOLVERS = 4
"""Names that are resolved at a time; the system's resolver has no time limit of its own."""

Resolve = Callable[[str, int], list[str]]


def system_resolver(host: str, port: int) -> list[str]:
    """The addresses of a name, as the operating system finds them. Raises OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Refused(Exception):
    """Nothing was sent; the words say why."""


class OutboundHttp:
    """Sends messages to receivers outside. May be shared by threads."""

    def __init__(
        self,
        *,
        allowed: tuple[Network, ...] = (),
        ports: tuple[int, ...] = (443, 80),
        http: bool = False,
        certificates: str | None = None,
        resolve: Resolve = system_resolver,
    ) -> None:
        """
        Args:
            allowed: private networks that may be reached, at any port.
            ports: those that may be reached at public addresses.
            http: whether messages may be sent unencrypted.
            certificates: a file of further authorities to believe, in PEM.
            resolve: the addresses of a name.

        Raises:
            InvalidSetting: the file of certificates cannot be read.
        """
        self._allowed = allowed
        self._ports = frozenset(ports)
        self._http = http
        self._resolve = resolve
        self._certificates = certificates
        if certificates is not None:
            self._tls.load_default_certs()  # all is read now, so that a bad file is told at the start
        self._resolvers = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="modelkeep-names")

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """What is believed; read when it is first needed, for that takes as long as a server's start may."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self._certificates is not None:
            try:
                context.load_verify_locations(self._certificates)
            except (OSError, ssl.SSLError) as problem:
                raise errors.InvalidSetting(
                    f"The certificates {self._certificates} cannot be read: {problem}.",
                    field="webhook_ca_file",
                ) from problem
        return context

    def close(self) -> None:
        """Let the threads go; a name that is being resolved is not waited for."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def check(self, url: str) -> None:
        """See that a webhook may have this address, as things stand now.

        Raises:
            InvalidWebhook: it is none, cannot be resolved, or leads where nothing may be sent.
        """
        target = webhooks.check_url(url, http=self._http)
        try:
            self._judged(target)
        except _Refused as refused:
            raise errors.InvalidWebhook(
                f"{values.quoted(url, 100)} cannot be a webhook's address: {refused}.", field="url"
            ) from refused

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """Send a message, and wait for the answer's status.

        Returns:
            the status, or why there is none: it raises nothing.
        """
        began = time.monotonic()
        status: int | None = None
        error = answer = None
        retry_after = None
        try:
            target = webhooks.check_url(url, http=self._http)
            with closing(self._connected(target, self._judged(target), began + TOTAL_S)) as connection:
                connection.settimeout(_left(began + TOTAL_S))
                connection.sendall(_request(target, headers, body))
                status, retry_after, answer = _answer(connection, began + TOTAL_S)
        except errors.InvalidWebhook as problem:
            error = str(problem)
        except _Refused as refused:
            error = f"Nothing was sent: {refused}."
        except TimeoutError:
            error = f"The receiver took more than {TOTAL_S:.0f} seconds."
        except ssl.SSLCertVerificationError as problem:
            error = (
                f"The receiver's certificate is not good: {values.printable(problem.verify_message)[:200]}."
            )
        except (OSError, http.client.HTTPException, ValueError) as problem:
            error = f"The receiver could not be reached: {_words(problem)}."
        return Sent(
            status=status,
            error=error,
            duration_ms=(time.monotonic() - began) * 1_000,
            answer_sha256=answer,
            retry_after_s=retry_after,
        )

    def _judged(self, target: Target) -> list[str]:
        """The addresses of a receiver, all of which may be connected to. Raises _Refused."""
        found = self._addresses(target)
        for text in found:
            why = addresses.refusal(text, self._allowed)
            listed = target.port in self._ports or addresses.is_listed(text, self._allowed)
            if why is None and not listed:
                why = f"the port {target.port} is not among those that may be reached"
            if why is not None:
                raise _Refused(f"{target.host} leads where nothing may be sent: {why}")
        return found

    def _addresses(self, target: Target) -> list[str]:
        try:
            found = [str(ip_address(target.host))]
        except ValueError:
            asked: Future[list[str]] = self._resolvers.submit(self._resolve, target.host, target.port)
            try:
                found = asked.result(timeout=CONNECT_S)
            except FutureTimeout:
                asked.cancel()
                raise _Refused(f"the name {target.host} was not resolved in {CONNECT_S:.0f} s") from None
            except (OSError, UnicodeError):
                raise _Refused(f"the name {target.host} cannot be resolved") from None
        if not 1 <= len(found) <= ADDRESSES_MAX:
            raise _Refused(f"the name {target.host} has {len(found)} addresses")
        return found

    def _connected(self, target: Target, judged: list[str], until: float) -> socket.socket:
        """A connection to one of the judged addresses. Raises OSError, _Refused."""
        last: OSError | None = None
        for address in judged[:TRIED_MAX]:
            try:
                connection = socket.create_connection(
                    (address, target.port), timeout=min(CONNECT_S, _left(until))
                )
            except OSError as problem:
                last = problem
                continue
            try:
                return self._secured(connection, address, target)
            except BaseException:
                connection.close()
                raise
        assert last is not None, "there is at least one address"
        raise last

    def _secured(self, connection: socket.socket, address: str, target: Target) -> socket.socket:
        peer = str(connection.getpeername()[0]).partition("%")[0]
        if ip_address(peer) != ip_address(address):
            raise _Refused(f"the connection went to {peer} and not to {address}")
        if target.scheme == "http":
            return connection
        return self._tls.wrap_socket(connection, server_hostname=target.host)


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    fields = {
        "Host": target.host_header,
        "User-Agent": f"modelkeep-webhooks/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **headers,
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any(c in line for line in lines for c in "\r\n\0"):
        raise ValueError("a header has a line break")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class _Limited(io.RawIOBase):
    """The bytes of an answer, within a number of them and a moment."""

    def __init__(self, connection: socket.socket, until: float, limit: int) -> None:
        self._connection = connection
        self.until = until
        self.left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]  # the buffer of a BufferedReader
        if self.left <= 0:
            raise ValueError("its answer is too long")
        self._connection.settimeout(_left(self.until))
        count = self._connection.recv_into(buffer, min(len(buffer), self.left))
        self.left -= count
        return count


class _Source:
    """What the standard library reads an answer from, in the place of a socket."""

    def __init__(self, stream: _Limited) -> None:
        self._stream = stream

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._stream, 8 * 1024)


def _answer(connection: socket.socket, until: float) -> tuple[int, float | None, str | None]:
    """The status of an answer, how long it asks us to wait, and a hash of the part of its body that was read.

    The status decides; a body that is slow, endless or broken changes nothing.

    Raises:
        OSError, HTTPException, ValueError: there is no status.
    """
    stream = _Limited(connection, until, HEAD_MAX_BYTES)
    response = http.client.HTTPResponse(_Source(stream), method="POST")  # type: ignore[arg-type]  # makefile is all it uses
    try:
        response.begin()
        retry_after = _wait(response.getheader("Retry-After"))
        stream.until, stream.left = min(until, time.monotonic() + BODY_S), BODY_MAX_BYTES
        digest = hashlib.sha256()
        try:
            while part := response.read1(8 * 1024):
                digest.update(part)
        except (OSError, http.client.HTTPException, ValueError):
            return response.status, retry_after, None
        return response.status, retry_after, digest.hexdigest()
    finally:
        response.close()


def _wait(text: str | None) -> float | None:
    """Seconds of a `Retry-After` header, which is a number of them or a time; None for anything else."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return None


def _left(until: float) -> float:
    """Seconds that are left, for a socket. Raises TimeoutError when none are."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _words(problem: Exception) -> str:
    """What went wrong, in words that name nothing of what was answered."""
    match problem:
        case ssl.SSLError():
            return f"its encryption failed ({values.printable(problem.reason or 'unknown')[:60]})"
        case ConnectionRefusedError():
            return "nobody listens there"
        case ConnectionError():
            return "the connection broke"
        case http.client.HTTPException():
            return "its answer is not HTTP"
        case OSError():
            return values.printable(problem.strerror or type(problem).__name__)[:100]
        case _:
            return "its answer is too long, or not HTTP"
