"""Receivers of webhooks: one in this process that needs no socket, and real servers, well-behaved and not.

A receiver remembers what it was sent and answers as it is told. The fake keeps the promises of the way out
that matter to whoever sends: it raises nothing and says what became of each message.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from modelkeep.core import webhooks
from modelkeep.core.webhooks import Sent


@dataclass
class Taken:
    """One message as it came."""

    url: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class FakeReceiver:
    """A receiver without a network.

    Attributes:
        answers: a status, an error or a whole `Sent` for each message in turn; then `usual`.
        before: called with each message before it is answered, while nobody holds a transaction.
    """

    usual: int | str = 200
    answers: list[int | str | Sent] = field(default_factory=list)
    taken: list[Taken] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    before: Callable[[Taken], None] | None = None

    def check(self, url: str) -> None:
        """See that it is an address; it leads here, wherever it leads."""
        webhooks.check_url(url, http=True)
        self.checked.append(url)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Sent:
        """Take a message."""
        message = Taken(url, dict(headers), body)
        if self.before is not None:
            self.before(message)
        self.taken.append(message)
        answer = self.answers.pop(0) if self.answers else self.usual
        match answer:
            case int(status):
                return Sent(status=status, error=None, duration_ms=1.0, answer_sha256="0" * 64)
            case str(error):
                return Sent(status=None, error=error, duration_ms=1.0)
            case Sent() as sent:
                return sent

    @property
    def good(self) -> list[Taken]:
        """What was taken, each message once however often it came."""
        return list({message.id: message for message in self.taken}.values())


class Receiver:
    """A real server on 127.0.0.1 that handles each connection with one function."""

    def __init__(
        self, handle: Callable[[socket.socket], None], context: ssl.SSLContext | None = None
    ) -> None:
        self._handle = handle
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._listening.getsockname()[1]
        self.connections = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            self._handle(connection)
            with contextlib.suppress(OSError):
                connection.close()

    def stop(self) -> None:
        """Close every connection, and the door."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who waits at it, which closing does not
        self._listening.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self._thread.join(5)


@contextlib.contextmanager
def receiving(
    handle: Callable[[socket.socket], None], context: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    """A server as long as the block lasts."""
    receiver = Receiver(handle, context)
    try:
        yield receiver
    finally:
        receiver.stop()


def read_request(connection: socket.socket) -> Taken:
    """A whole request from a connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65_536)
        if not part:
            raise ConnectionError("it ended within the head")
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65_536)
    return Taken(first, headers, body)


def answering(reply: bytes, taken: list[Taken] | None = None) -> Callable[[socket.socket], None]:
    """A handler that reads the request and answers with these bytes."""

    def handle(connection: socket.socket) -> None:
        message = read_request(connection)
        if taken is not None:
            taken.append(message)
        connection.sendall(reply)

    return handle


OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, Path]:
    """A server's TLS context for a name, signed by itself, and the file that makes it believed."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    believed, both = folder / f"{name}.pem", folder / f"{name}.key.pem"
    believed.write_bytes(pem)
    both.write_bytes(secret + pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context, believed
