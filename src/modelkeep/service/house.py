"""The house: all services of the control plane in one frozen value, as the faces use them.

It is built in `wiring`, which alone knows the adapters; nothing in here constructs anything.
"""

from dataclasses import dataclass

from modelkeep.ports import BlobStore
from modelkeep.service.access import Access
from modelkeep.service.act import Desk
from modelkeep.service.artifacts import Artifacts
from modelkeep.service.audit import Audit
from modelkeep.service.catalog import Catalog
from modelkeep.service.deliveries import Deliveries
from modelkeep.service.imports import Imports
from modelkeep.service.logged_models import LoggedModels
from modelkeep.service.promotion import Promotions
from modelkeep.service.rollout import Rollouts
from modelkeep.service.sources import Sources
from modelkeep.service.tracking import Tracking
from modelkeep.service.webhooks import Webhooks


@dataclass(frozen=True)
class House:
    """The services, the desk that opens acts on the store, and the blobs that streams go to."""

    desk: Desk
    blobs: BlobStore
    access: Access
    audit: Audit
    tracking: Tracking
    logged_models: LoggedModels
    artifacts: Artifacts
    imports: Imports
    catalog: Catalog
    sources: Sources
    promotions: Promotions
    rollouts: Rollouts
    webhooks: Webhooks
    deliveries: Deliveries
