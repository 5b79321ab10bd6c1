"""Building the house: the only file that knows every adapter. Read top to bottom, it says what runs on what.

It starts no server and reads no environment; settings come in, a house goes out.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from modelkeep.adapters.outbound_http import OutboundHttp
from modelkeep.adapters.webhook_secrets import WebhookSecrets
from modelkeep.core import errors, policy
from modelkeep.core.access import AuthMode
from modelkeep.core.addresses import networks
from modelkeep.ports import BlobStore
from modelkeep.service import token_key
from modelkeep.service.access import Access
from modelkeep.service.act import SYSTEM_CONTEXT, Desk
from modelkeep.service.artifacts import Artifacts
from modelkeep.service.audit import Audit
from modelkeep.service.catalog import Catalog
from modelkeep.service.deliveries import Deliveries
from modelkeep.service.house import House
from modelkeep.service.imports import Imports
from modelkeep.service.logged_models import LoggedModels
from modelkeep.service.promotion import Promotions
from modelkeep.service.rollout import Rollouts
from modelkeep.service.sources import Sources
from modelkeep.service.tracking import Tracking
from modelkeep.service.webhooks import Webhooks
from modelkeep.settings import Settings, variable
from modelkeep.store.database import Database

KEY_BYTES = 32
"""Of the key that tokens are hashed with: as many as its hash has."""


@contextmanager
def open_house(settings: Settings) -> Iterator[House]:
    """The whole control plane over its state, until the block ends.

    Raises:
        FolderInUse: another server works on the data folder.
        SchemaTooNew: the database was written by a newer release.
        StoreUnavailable, BlobsUnavailable, ExtraMissing, InvalidSetting: what cannot be opened, and why.
    """
    folder = settings.folder
    make_private(folder)
    with _alone(folder), closing(open_outbound(settings)) as outbound:
        database = Database.open(settings.database_url)
        try:
            blobs = open_blobs(settings)
            try:
                house = _assemble(settings, database, blobs, outbound)
                house.artifacts.small.put_back(house.desk)
                yield house
                house.artifacts.small.settle(house.desk)
            finally:
                blobs.close()
        finally:
            database.close()


def _assemble(settings: Settings, database: Database, blobs: BlobStore, outbound: OutboundHttp) -> House:
    desk = Desk(database)
    mode = AuthMode(settings.auth)
    key = _token_key(settings.token_key_path, desk)
    access = Access(desk, mode, key, settings.user)
    secrets_of = WebhookSecrets(key, settings.webhook_secrets_folder, variable)
    webhooks = Webhooks(access, secrets_of, outbound)
    rollouts = Rollouts()
    catalog = Catalog(blobs, desk)
    artifacts = Artifacts(blobs)
    promotions = Promotions(
        catalog=catalog,
        rollouts=rollouts,
        default_policy=policy.ALONE if mode is AuthMode.LOCAL else policy.TEAM,
    )
    rollouts.promotions = promotions
    catalog.followers = rollouts
    return House(
        desk=desk,
        blobs=blobs,
        access=access,
        audit=Audit(),
        tracking=Tracking(),
        logged_models=LoggedModels(),
        artifacts=artifacts,
        imports=Imports(blobs, catalog, artifacts),
        catalog=catalog,
        sources=Sources(blobs, catalog, artifacts),
        promotions=promotions,
        rollouts=rollouts,
        webhooks=webhooks,
        deliveries=Deliveries(webhooks),
    )


def open_outbound(settings: Settings) -> OutboundHttp:
    """The way out, guarded as the settings say.

    Raises:
        InvalidSetting: a network or the file of certificates cannot be read.
    """
    return OutboundHttp(
        allowed=networks(settings.webhook_allow),
        ports=settings.webhook_ports,
        http=settings.webhook_http,
        certificates=settings.webhook_ca_file,
    )


def open_blobs(settings: Settings) -> BlobStore:
    """The blob store that the settings name: a folder, or a bucket."""
    place = settings.blobs_place
    if not place.startswith("s3://"):
        from modelkeep.adapters.blobs_folder import FolderBlobs

        return FolderBlobs(Path(place))
    from modelkeep.adapters.blobs_s3 import S3Blobs

    address = urlsplit(place)
    return S3Blobs(
        address.netloc,
        settings.folder / "spool",
        prefix=address.path,
        endpoint=settings.s3_endpoint,
        region=settings.s3_region,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key,
    )


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can look into.

    Raises:
        InvalidSetting: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The folder {folder} cannot be made: {problem.strerror}. Name another with --data.", field="data"
        ) from problem


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the data folder. The kernel lets go of the lock when the process ends, however it ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(folder / "server.lock", flags, 0o600)
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The folder {folder} cannot be used: {problem.strerror}. Name another with --data.", field="data"
        ) from problem
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.FolderInUse(
                f"Another server works on {folder}; stop it, or name another folder with --data.",
                folder=str(folder),
            ) from None
        yield
    finally:
        os.close(descriptor)


def _token_key(path: Path, desk: Desk) -> bytes:
    """The installation's secret. A new installation makes it: 32 random bytes in a file that only its owner
    reads; one whose database has tokens already must be given the file they were made with.

    Raises:
        InvalidSetting: it is missing, cannot be read or made, or is another installation's.
    """
    try:
        try:
            key = path.read_bytes()
        except FileNotFoundError:
            if desk.read(SYSTEM_CONTEXT, token_key.is_bound):
                raise errors.InvalidSetting(
                    f"The key of this database's tokens is not at {path}; copy the key file of a server that "
                    "uses the database there, or restore it from a backup.",
                    field="token_key_file",
                ) from None
            key = _make_key(path)
    except OSError as problem:
        raise errors.InvalidSetting(
            f"The key file {path} cannot be used: {problem.strerror}.", field="token_key_file"
        ) from problem
    if len(key) < KEY_BYTES:
        raise errors.InvalidSetting(f"{path} is damaged; restore it from a backup.", field="token_key_file")
    desk.do(SYSTEM_CONTEXT, token_key.bind, key)
    return key


def _make_key(path: Path) -> bytes:
    """Make the key's file whole or not at all; of two servers that do so at once, the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()
    return path.read_bytes()


def write_private(path: Path, text: str) -> None:
    """Write a small secret beside its place and move it there whole, readable by its owner only."""
    make_private(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
