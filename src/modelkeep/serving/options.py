"""How a gateway is set, and every limit it keeps, on one page. It decides nothing."""

from pathlib import Path

from msgspec import Struct

# Limits of what may come in from outside, each with the reason for its size.
HEAD_MAX_BYTES = 16 * 1024
"""Request line and headers together; browsers and proxies stay far below."""
HEADERS_MAX = 100
"""Headers of one request."""
URL_MAX_BYTES = 2048
"""A path names an endpoint and a version, nothing longer."""
PIPELINE_PAUSE = 16
"""Requests waiting on one connection before the gateway stops reading from it."""
PIPELINE_MAX = 64
"""Requests waiting on one connection before it is refused: one read can bring more than the pause point."""
KEY_MAX_BYTES = 512
"""Bytes of a caller's key that are looked at."""
FRAME_MAX_BYTES = 64 * 1024 * 1024
"""One frame between the gateway's own processes; bodies in are capped far below, answers may be larger."""
CONTROL_LINE_MAX_BYTES = 64 * 1024
"""One command on the local control socket."""
TABLE_MAX_BYTES = 64 * 1024 * 1024
"""A routing table from the control plane: ten thousand routes with their versions."""
ROWS_MAX = 100_000
"""Rows of one prediction request."""
ERRORS_SEEN_MAX = 3
"""Error texts of a candidate that one tick carries."""
ERROR_TEXT_MAX = 300
"""Characters of an error text that leaves the worker."""
TICKS_KEPT_MAX = 2_000
"""Ticks kept while the control plane is away; beyond it older ones are merged."""
UNUSED_VERSIONS_KEPT = 10
"""Versions that no route names any more whose files stay in the local cache."""
UNIX_PATH_MAX = 100
"""Bytes of a unix socket's path; the system allows 107."""


class GatewayOptions(Struct, frozen=True, kw_only=True):
    """Everything that can be set about a gateway.

    `data` is its folder (journal, cache, sockets). `server` is the control plane's address (None: serve what
    the journal holds). `token_file` holds the bearer token (None: `token` in the folder, once it is there).
    `name` is what the control plane calls this gateway (None: an id made once and kept in the folder). `url`
    is the address that callers reach it by (None: host and port). `callers_token_file` holds the tokens of
    which callers show one; without it `host` is an address of this machine alone, or `open` says that anybody
    who reaches it may ask.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 5001
    server: str | None = None
    token_file: Path | None = None
    name: str | None = None
    url: str | None = None
    callers_token_file: Path | None = None
    open: bool = False
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser, beside the gateway's own."""
    fronts: int = 1
    log_level: str = "INFO"
    allow_code: bool = False
    """Whether versions may bring Python code of their own; it runs in their workers."""
    environments: str = "off"
    """`locked`: a version that lists its packages runs in an environment that is built of them."""
    build_timeout_s: float = 900.0
    """For one environment: large libraries are some gigabytes to fetch."""
    environment: dict[str, str] = {}
    """Variables that fronts and workers get; they inherit none, so that no secret reaches a model."""

    body_max_bytes: int = 8 * 1024 * 1024
    connections_max: int = 4096
    receive_deadline_s: float = 30.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0

    request_deadline_s: float = 30.0
    hold_s: float = 10.0
    """How long a request waits for a stable worker that is being restarted."""
    queue_max: int = 512
    """Requests in flight per version and front; more are answered 503."""
    queue_max_bytes: int = 64 * 1024 * 1024
    batch_rows_max: int = 256
    """Rows of several requests that share one call of the model (1: every request is computed by itself)."""
    batch_max_bytes: int = 8 * 1024 * 1024
    """Bytes of the requests that share one call."""
    warmup_requests: int = 20
    """Requests after a worker became ready that never count as slow."""

    memory_budget_bytes: int = 0
    """For the versions together (0: no limit); those loaded on demand give way, the longest unasked first."""
    sleep_after_s: float = 300.0
    """A version that is loaded on demand is put to sleep when nobody asked for it for so long (0: never)."""

    log_max_bytes: int = 1024 * 1024 * 1024
    """Of the prediction log's files together; the oldest go first."""

    tick_s: float = 1.0
    ack_timeout_s: float = 1.0
    """A front that does not confirm a new table in this time is replaced by one that has it."""
    drain_s: float = 10.0
    shutdown_delay_s: float = 0.0
    """After the signal to stop, go on serving this long while `/ready` already says no."""
    load_timeout_s: float = 120.0
    hang_s: float = 90.0
    """A worker silent for this long is taken for hung: longer than any request may take."""
    worker_threads: int = 0
    """Threads of one model's arithmetic (0: half of the machine's cores)."""
    worker_memory_bytes: int = 0
    """Limit of one worker's memory (0: none): of its address space, or on a card of what is resident."""
    device: str = "auto"
    """What versions compute on: `auto` (a card where there is one and the version can use it), `cpu`, `cuda`,
    or `cuda:0,2` with the cards to use."""
    gpu_environment: dict[str, str] = {}
    """What the gateway's own environment says of cards and their libraries; workers on a card get it."""
    backoff_first_s: float = 0.1
    backoff_max_s: float = 30.0
    crashes_max: int = 5
    crash_window_s: float = 60.0
    healthy_after_s: float = 60.0
    poll_wait_s: float = 20.0
    report_every_s: float = 1.0
