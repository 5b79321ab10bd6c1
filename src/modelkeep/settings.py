"""Every setting of every process, read once: defaults < file < MODELKEEP_* environment < flags.

The only file that looks at the environment. A setting is one field of `Settings`; its comment is its line in
docs/reference/settings.md. Secrets are read here and are never printed.
"""

import getpass
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

import msgspec
from msgspec import Struct

from modelkeep.core import errors, values

PREFIX = "MODELKEEP_"
IDLE_MAX_S = 86_400.0
"""A version that nobody asked for a day is not waited for."""


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. Units stand in the names."""

    # where things are kept
    data: str = "modelkeep-data"  # the folder of everything that has no other place
    database: str | None = None  # sqlite:///FILE or postgresql://...; a file in the data folder when left out
    blobs: str | None = None  # a folder, or s3://BUCKET/PREFIX; a folder in the data folder when left out
    s3_endpoint: str | None = None  # the address of an S3 server that is not AWS
    s3_region: str | None = None  # the bucket's region
    s3_access_key_id: str | None = None  # taken from the cloud machine when left out
    s3_secret_access_key: str | None = None  # goes with s3_access_key_id

    # the server
    host: str = "127.0.0.1"  # the address to listen on; another than this machine's own needs auth = token
    port: int = 5000  # the control plane's port; 0 for any free one
    auth: str = "local"  # local: the operating system's user owns everything; token: nobody without a token
    token_key_file: str | None = None  # the key of all tokens; servers on one database share it
    host_names: tuple[str, ...] = ()  # further names under which callers may address the server; * for any
    log_level: str = "INFO"  # DEBUG, INFO, WARNING or ERROR
    user: str = "owner"  # who acts in local mode; the operating system's user

    # webhooks
    webhook_allow: tuple[str, ...] = ()  # private networks that may be delivered to, like 10.1.0.0/16
    webhook_ports: tuple[int, ...] = (443, 80)  # the ports that may be delivered to at public addresses
    webhook_http: bool = False  # whether deliveries may go unencrypted
    webhook_ca_file: str | None = None  # further authorities to believe, in PEM
    webhook_secrets: str | None = None  # the folder of secrets named file:NAME; one in the data folder

    # the gateway
    gateway_host: str = "127.0.0.1"  # the address the gateway listens on
    gateway_port: int = 5001  # the gateway's port
    gateway_callers_token_file: str | None = None  # a token a line; the gateway's callers show one
    gateway_open: bool = False  # whether anybody may ask who reaches a gateway beyond this machine
    gateway_cors_origins: tuple[str, ...] = ()  # origins whose pages may ask it, like https://app.example.com
    gateway_fronts: int = 1  # processes that take requests
    gateway_allow_code: bool = False  # whether versions may bring Python code of their own
    gateway_environments: str = "off"  # locked: a version runs with the packages it lists, installed by uv
    gateway_memory_budget: str = "0"  # for the versions together, like 2GiB; those loaded on demand give way
    gateway_worker_memory: str = "0"  # what one process of a version may map, like 4GiB; 0 for no limit
    gateway_device: str = "auto"  # what versions compute on: auto, cpu, cuda, or cuda:0,2 with the cards
    gateway_idle_timeout_s: float = 300.0  # a version loaded on demand sleeps after it; 0 for never
    gateway_data: str | None = None  # the gateway's own folder; one in the data folder when left out

    # the client
    url: str = "http://127.0.0.1:5000"  # where the client finds the server
    token: str | None = None  # the client's token
    timeout_s: float = 60.0  # how long the client waits for an answer

    @property
    def folder(self) -> Path:
        return Path(self.data)

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.folder / 'modelkeep.db'}"

    @property
    def blobs_place(self) -> str:
        return self.blobs or str(self.folder / "blobs")

    @property
    def token_key_path(self) -> Path:
        return Path(self.token_key_file) if self.token_key_file else self.folder / "keys" / "token.key"

    @property
    def webhook_secrets_folder(self) -> Path:
        return Path(self.webhook_secrets) if self.webhook_secrets else self.folder / "webhook-secrets"

    @property
    def gateway_memory_budget_bytes(self) -> int:
        return values.parse_size(self.gateway_memory_budget)

    @property
    def gateway_worker_memory_bytes(self) -> int:
        return values.parse_size(self.gateway_worker_memory)

    @property
    def gateway_folder(self) -> Path:
        return Path(self.gateway_data) if self.gateway_data else self.folder / "gateway"


_SECRET = frozenset({"token", "s3_secret_access_key", "database"})
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def load(flags: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Args:
        flags: what was said on the command line; None values count as not said.
        environment: for tests; the process's own by default. MODELKEEP_CONFIG names the file.

    Raises:
        InvalidSetting: an unknown name or a value that does not fit; names the setting and where it came
        from.
    """
    env = os.environ if environment is None else environment
    merged: dict[str, Any] = {}
    config = env.get(PREFIX + "CONFIG")
    if config:
        merged.update(_fitting(_file(Path(config)), f"the file {config}"))
    merged.update(_fitting(_environment(env), "the environment"))
    said = {name: value for name, value in (flags or {}).items() if value is not None}
    merged.update(_fitting(said, "the command line"))
    merged.setdefault("user", _user())
    return _checked(msgspec.convert(merged, Settings, strict=False))


def said(names: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What the process's environment says under some names that are not ours; those it says nothing of are
    left out."""
    env = os.environ if environment is None else environment
    return {name: env[name] for name in names if name in env}


def _fitting(found: dict[str, Any], source: str) -> dict[str, Any]:
    """What one source says, when all of it can be settings."""
    try:
        msgspec.convert(found, Settings, strict=False)
    except msgspec.ValidationError as problem:
        known = ", ".join(entry.name for entry in msgspec.structs.fields(Settings))
        raise errors.InvalidSetting(f"{problem} in {source}. The settings are: {known}.") from problem
    return found


def _checked(settings: Settings) -> Settings:
    if settings.auth not in ("local", "token"):
        raise errors.InvalidSetting(f"'auth' is 'local' or 'token', not {settings.auth!r}.", field="auth")
    for name, port in (("port", settings.port), ("gateway_port", settings.gateway_port)):
        if not 0 <= port <= 65_535:
            raise errors.InvalidSetting(f"{name!r} is a number from 0 to 65535, not {port}.", field=name)
    if settings.gateway_environments not in ("off", "locked"):
        raise errors.InvalidSetting(
            f"'gateway_environments' is 'off' or 'locked', not {settings.gateway_environments!r}.",
            field="gateway_environments",
        )
    for name in ("gateway_memory_budget", "gateway_worker_memory"):
        try:
            values.parse_size(getattr(settings, name))
        except errors.Invalid as problem:
            raise errors.InvalidSetting(problem.message, field=name) from problem
    if not 0 <= settings.gateway_idle_timeout_s <= IDLE_MAX_S:
        raise errors.InvalidSetting(
            "'gateway_idle_timeout_s' is a number of seconds from 0 (never) to a day.",
            field="gateway_idle_timeout_s",
        )
    if settings.auth == "local" and settings.host not in _LOOPBACK:
        raise errors.InvalidSetting(
            f"Listening on {settings.host} would let anybody in; add --auth token, or listen on 127.0.0.1.",
            field="auth",
        )
    if not 0 < settings.timeout_s <= 86_400:
        raise errors.InvalidSetting("'timeout_s' is a number of seconds above 0.", field="timeout_s")
    if settings.log_level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise errors.InvalidSetting("'log_level' is DEBUG, INFO, WARNING or ERROR.", field="log_level")
    return settings


def _file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The settings file {path} cannot be read: {problem.strerror}."
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise errors.InvalidSetting(f"The settings file {path} is not valid TOML: {problem}.") from problem


def _environment(env: Mapping[str, str]) -> dict[str, Any]:
    known = {entry.name: entry for entry in msgspec.structs.fields(Settings)}
    found: dict[str, Any] = {}
    for name, value in env.items():
        if not name.startswith(PREFIX) or name == PREFIX + "CONFIG":
            continue
        setting = name.removeprefix(PREFIX).lower()
        if setting not in known:
            raise errors.InvalidSetting(
                f"{values.printable(name)[:80]} is no setting; they are: {', '.join(known)}.", field=setting
            )
        words = (word.strip() for word in value.split(","))
        found[setting] = tuple(filter(None, words)) if get_origin(known[setting].type) is tuple else value
    return found


def _user() -> str:
    """The operating system's user, in letters that a name may have."""
    try:
        raw = getpass.getuser()
    except (OSError, KeyError):
        raw = "owner"
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in raw).lstrip("._-")
    return cleaned[: values.NAME_MAX] or "owner"


def variable(name: str) -> str | None:
    """A variable of the environment that is no setting: a secret that somebody named."""
    return os.environ.get(name)


def shown(settings: Settings) -> dict[str, str]:
    """Every setting with its value as it may be printed."""
    return {
        entry.name: "***"
        if entry.name in _SECRET and getattr(settings, entry.name)
        else str(getattr(settings, entry.name))
        for entry in msgspec.structs.fields(Settings)
    }
