"""What the parts of a gateway say to each other over their private channels. Shapes only.

A channel is a socket pair made before the child is started, so there is no name to find and no permission to
set; its end of file is how each side learns that the other is gone.
"""

import struct
from enum import IntEnum
from typing import TypeVar, cast

import msgspec
from msgspec import Struct

from modelkeep.core.observation import FieldMisses, LabelCounts, PairCounts
from modelkeep.core.routing import Epoch, Route, VersionKey, VersionSpec
from modelkeep.core.values import Digest
from modelkeep.serving import frames
from modelkeep.serving.counting import RouteCounts
from modelkeep.serving.devices import Device
from modelkeep.serving.options import GatewayOptions

ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
"""Upper bounds of the histogram of rows a call."""
DELAY_BUCKETS_MS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0, 5000.0)
"""Upper bounds of the histogram of a request's time in its worker's queue."""


JSON_LENGTH = struct.Struct("!I")
"""Before a body that has bytes after its JSON, in either direction."""


class Door(IntEnum):
    """The way a prediction came in, and goes out."""

    PREDICT = 0
    INFER = 1
    INVOCATIONS = 2
    INVOCATIONS_CSV = 3
    INFER_BINARY = 4
    """Open Inference with tensors as bytes; before the body stands the length of its JSON."""


class TensorInfo(Struct, frozen=True, kw_only=True):
    """A field in the words of the Open Inference Protocol; the first axis is the rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class VersionName(Struct, frozen=True, kw_only=True):
    """What a front has to know of a version. `digest` is shown to people."""

    key: VersionKey
    digest: Digest
    label: str
    semver: str
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()


class Swap(Struct, frozen=True, kw_only=True, tag=True):
    """Obey these routes from now on, and confirm. Routes that are neither changed nor removed stand;
    `versions` names those of the changed routes."""

    serial: int
    number: int
    changed: tuple[Route, ...]
    removed: tuple[str, ...]
    versions: tuple[VersionName, ...]


class Hello(Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a front. `known`: a table was obeyed before, so having no route is not having no
    answer."""

    options: GatewayOptions
    index: int
    swap: Swap
    known: bool


class WorkerUp(Struct, frozen=True, kw_only=True, tag=True):
    """A worker of a version can be reached at this socket. `device`: what it computes on."""

    version: VersionName
    path: str
    device: str = Device.CPU


class WorkerDown(Struct, frozen=True, kw_only=True, tag=True):
    """A version cannot be reached, at this socket or (without one) at all. `failed`: nor will it be soon; do
    not let requests wait for it. `gently`: what it has it still answers, only send it nothing new."""

    key: VersionKey
    failed: bool
    path: str = ""
    gently: bool = False


class Asleep(Struct, frozen=True, kw_only=True, tag=True):
    """A version is loaded when somebody asks for it: say so then (`Wanted`), and let requests wait. What its
    workers have they still answer. `failed`: it could not be loaded just now; let none of those wait that
    do."""

    version: VersionName
    failed: bool = False


class Collect(Struct, frozen=True, kw_only=True, tag=True):
    """Hand over what was counted."""


class Drain(Struct, frozen=True, kw_only=True, tag=True):
    """Say no on /ready; with `close`, also take no new connection and exit when the last answer is out."""

    close: bool


class Page(Struct, frozen=True, kw_only=True, tag=True):
    """The text of a page that a front asked for; empty when there is none."""

    number: int
    text: str


class RecorderAt(Struct, frozen=True, kw_only=True, tag=True):
    """The recorder can be reached at this socket; None: there is none."""

    path: str | None


ToFront = Hello | Swap | WorkerUp | WorkerDown | Asleep | Collect | Drain | Page | RecorderAt


class Swapped(Struct, frozen=True, kw_only=True, tag=True):
    """The table is obeyed. `last_sent` tells, for each version with traffic, when (monotonic seconds) this
    front last sent it a request: the proof that after a rollback nothing more went there."""

    serial: int
    last_sent: dict[VersionKey, float]


class FrontCounts(Struct, frozen=True, kw_only=True, tag=True):
    """What a front counted since it last said so."""

    routes: list[RouteCounts]
    statuses: dict[int, int] = {}
    retries: dict[str, int] = {}
    shed: dict[str, int] = {}
    log_lost: dict[str, int] = {}
    """Records that found no room on their way to the recorder, by endpoint."""
    copies_dropped: dict[str, int] = {}
    """Copies for a shadow version that were not made or not told, by endpoint."""
    used: dict[VersionKey, float] = {}
    """When (monotonic seconds) versions were last sent a request, of those that were since the last word."""
    busy: list[VersionKey] = []
    """Versions with requests under way or waiting."""
    first_waits_s: list[float] = []
    """For each version that was loaded on demand: how long the first request had waited when it was sent."""
    connections: int = 0
    in_flight: int = 0
    cpu_s: float = 0.0
    memory_bytes: int = 0


class Connected(Struct, frozen=True, kw_only=True, tag=True):
    """A front has reached a version's worker."""

    key: VersionKey


class Wanted(Struct, frozen=True, kw_only=True, tag=True):
    """Requests wait for a version that sleeps."""

    key: VersionKey


class WantPage(Struct, frozen=True, kw_only=True, tag=True):
    """Somebody asked this front for the gateway's metrics, or for the description of an endpoint."""

    number: int
    endpoint: str = ""


class Drained(Struct, frozen=True, kw_only=True, tag=True):
    """This front has answered everything and goes."""


FromFront = Swapped | FrontCounts | Connected | Wanted | WantPage | Drained


class Load(Struct, frozen=True, kw_only=True, tag=True):
    """The first message to a worker. `folder` holds the version's verified files. With any other device than
    the processor it sees one card at most."""

    spec: VersionSpec
    folder: str
    path: str
    threads: int
    memory_bytes: int = 0
    allow_code: bool = False
    batch_rows_max: int = 1
    batch_max_bytes: int = 0
    device: Device = Device.CPU


class Ping(Struct, frozen=True, kw_only=True, tag=True):
    """Are you alive?"""

    number: int


class Stop(Struct, frozen=True, kw_only=True, tag=True):
    """Finish what has arrived and go."""


ToWorker = Load | Ping | Stop


class Loaded(Struct, frozen=True, kw_only=True, tag=True):
    """The version is loaded, warm, and listening. `together`: rows of several requests may share a call.
    `device`: what it computes on, and `device_word` why it is the processor where a card was there, or what
    else there is to say."""

    runtime: str
    took_s: float
    warmed: bool
    together: bool = True
    device: Device = Device.CPU
    device_word: str = ""


class LoadFailed(Struct, frozen=True, kw_only=True, tag=True):
    """The version cannot be loaded; `code` is an error code of the core. `on_card`: it was tried on a card,
    and may go well on the processor."""

    code: str
    error: str
    on_card: bool = False


class Pong(Struct, frozen=True, kw_only=True, tag=True):
    """Alive."""

    number: int
    answered: int


class Worked(Struct, frozen=True, kw_only=True, tag=True):
    """What a worker counted since it last said so: calls by the reason why each ended where it did, and the
    requests that were never computed. The buckets are those above, and one more for what is beyond."""

    batches: dict[str, int]
    rows: int
    rows_buckets: list[int]
    delay_s: float
    delay_buckets: list[int]
    expired: int = 0
    cancelled: int = 0
    misses: FieldMisses = FieldMisses()


FromWorker = Loaded | LoadFailed | Pong | Worked


class Watch(Struct, frozen=True, kw_only=True, tag=True):
    """What a recorder has to know: first where it writes and listens, and then, with every table, how fields
    are treated and what versions look like."""

    data: str
    path: str
    max_bytes: int
    log_level: str
    routes: tuple[Route, ...]
    versions: tuple[VersionSpec, ...]


ToRecorder = Watch | Stop


class PairsOf(Struct, frozen=True, kw_only=True):
    """What was compared under one epoch and weight of an endpoint."""

    endpoint: str
    rollout: str | None
    epoch: Epoch
    candidate_ppm: int
    counts: PairCounts


class ToldSide(Struct, kw_only=True):
    """Labels of one side since they were last told; `callers` had one that could be compared, in the order in
    which they came, and whether it says that the prediction was wrong."""

    labels: int = 0
    wrong: int = 0
    odd: int = 0
    callers: list[tuple[int, bool]] = []

    @property
    def told(self) -> tuple[LabelCounts, list[tuple[int, bool]]]:
        """As the ledger takes it."""
        return LabelCounts(labels=self.labels, wrong=self.wrong, odd=self.odd), self.callers


class LabelsOf(Struct, frozen=True, kw_only=True):
    """What became known of predictions made under one epoch and weights of a rollout."""

    endpoint: str
    rollout: str
    epoch: Epoch
    candidate_ppm: int
    candidate: ToldSide
    stable: ToldSide
    others: tuple[ToldSide, ...] = ()
    others_ppm: tuple[int, ...] = ()
    aside_ppm: int = 0


class BandsOf(Struct, kw_only=True):
    """Callers with the band of their first prediction, under one epoch and weight of a rollout."""

    endpoint: str
    rollout: str
    epoch: Epoch
    candidate_ppm: int
    candidate: list[tuple[int, int]] = []
    stable: list[tuple[int, int]] = []


class Noted(Struct, frozen=True, kw_only=True, tag=True):
    """What a recorder compared and joined since it last said so, and how the log stands since its start. Its
    first word means that fronts may connect."""

    pairs: list[PairsOf] = []
    labels: list[LabelsOf] = []
    bands: list[BandsOf] = []
    rows: int = 0
    lost: int = 0
    size_bytes: int = 0
    problem: str | None = None


FromRecorder = Noted

Message = ToFront | FromFront | ToWorker | FromWorker | ToRecorder | FromRecorder
M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder(enc_hook=str)
_decoders: dict[object, msgspec.msgpack.Decoder[object]] = {}


def pack(message: Message) -> bytes:
    """A message as a frame."""
    return frames.pack(0, frames.Kind.MESSAGE, _encoder.encode(message))


def unpack(payload: bytes, kind: type[M]) -> M:
    """A message of one of the unions above.

    Raises:
        msgspec.ValidationError: not one of them.
    """
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind, dec_hook=lambda hint, value: hint(value))
    return cast(M, decoder.decode(payload))
