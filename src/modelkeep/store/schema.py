"""The tables of the spine, of what exists, of promotion, rollout and access, and the rules that the database
itself keeps. It holds no statement and no data; what was tried stands in `tracking_tables`.

JSON is text, a yes or no is 0 or 1, a time is the fixed-width text of `codec.format_time`, which
sorts as time does. Text is compared by bytes on both dialects, so that a page key means the same everywhere;
on SQLite tables are strict.

Invariants stand here, where no code path can forget them: foreign keys, checks, and partial unique indexes
(one version in an exclusive stage, one running rollout of an endpoint). An index exists for a query that is
asked, no other.

A change here needs a revision in `migrations/versions` that does the same; a test compares the two on both
dialects.
"""

from sqlalchemy import CheckConstraint, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint

from modelkeep.store.columns import HEAD_CHARACTERS as HEAD_CHARACTERS  # noqa: PLC0414  (for others, too)
from modelkeep.store.columns import content as _content
from modelkeep.store.columns import double as _double
from modelkeep.store.columns import flag as _flag
from modelkeep.store.columns import key as _key
from modelkeep.store.columns import metadata as metadata  # noqa: PLC0414  (for others)
from modelkeep.store.columns import table as _table
from modelkeep.store.columns import where as _where
from modelkeep.store.columns import whole as _whole
from modelkeep.store.columns import words as _words

# -------------------------------------------------------------------------------------------------- the spine

events = _table(
    "events",
    _whole("sequence"),
    _words("kind"),
    _words("at"),
    _words("subject"),
    _words("model", null=True),  # the full name, as the event has it: history outlives a model
    _whole("number", null=True),
    _words("document"),  # canonical JSON of the Event: what the leaf is the hash of
    _words("leaf"),
    _words("link"),
    _key("sequence"),
    CheckConstraint("sequence > 0", name="sequence"),
    Index(None, "kind", "sequence"),
    Index(None, "subject", "sequence"),
    Index(None, "at", "sequence"),
    _where("ix_events_model_sequence", "model", "sequence", condition="model is not null"),
)

chain_head = _table(
    "chain_head",
    _whole("id"),
    _whole("sequence"),
    _words("link"),
    _key("id"),
    CheckConstraint("id = 1", name="one_row"),
)
"""Where the chain ends. One row: events cut off the end of the log are missed by it."""

settings = _table(
    "settings", _words("key"), _words("value"), _words("updated_at"), _key("key"), clustered=True
)
"""Facts of the installation itself: its id, its kind of authentication."""

# ---------------------------------------------------------------------------------------------------- catalog

models = _table(
    "models",
    _words("id"),
    _words("project"),
    _words("name"),
    _words("folded"),  # the name as a careless reader sees it: no two of a project may look the same
    _words("description"),
    _words("owner"),
    _words("stages"),  # JSON of the StageGraph
    _whole("next_number"),  # numbers are given once and never again, whatever is deleted
    _whole("version_count"),
    _words("created_at"),
    _words("created_by"),
    _words("updated_at"),
    _words("deleted_at", null=True),
    _key("id"),
    CheckConstraint("next_number > 0", name="next_number"),
    CheckConstraint("version_count >= 0", name="version_count"),
    UniqueConstraint("project", "name"),  # a deleted model's row takes the name up again, with its numbers
    Index(None, "name"),  # a search names a model without its project
    _where("uq_models_project_folded", "project", "folded", condition="deleted_at is null", unique=True),
)

model_renames = _table(
    "model_renames",
    _whole("sequence"),  # of the event
    _words("from_name"),  # full names, as events have them
    _words("to_name"),
    _key("sequence"),
    Index(None, "from_name", "sequence"),
    Index(None, "to_name", "sequence"),
)
"""Which names models had: events are filed under the name of their day."""

model_tags = _table(
    "model_tags",
    _words("model_id", ForeignKey("models.id")),
    _words("key"),
    _words("value"),
    _words("value_head"),  # the first HEAD_CHARACTERS of the value: compare it and the value
    _double("number", null=True),  # the value where it is a number: `query.as_number`
    _key("model_id", "key"),
    Index(None, "key", "value_head", "model_id"),
    clustered=True,
)

versions = _table(
    "versions",
    _words("id"),
    _words("model_id", ForeignKey("models.id")),
    _whole("number"),
    _words("semver"),
    _words("semver_key"),  # semver.sort_key: its plain order is the order of versions
    _flag("prerelease"),
    _words("digest"),
    _whole("size_bytes"),
    _words("status"),
    _words(
        "document"
    ),  # JSON of what never changes: files, signature, metrics, params, metadata, provenance, bump, parent
    _whole("parent", null=True),  # as in the document, to be searched by
    _words("framework", null=True),
    _words("run_id", null=True),
    _words("source", null=True),
    _words("code_commit", null=True),
    _words("identity", null=True),
    _whole("from_sequence"),  # the events of its registration and of its deletion: when it existed
    _whole("to_sequence", null=True),
    _words("description"),
    _words("tombstone", null=True),  # why it was taken back; it does not come back by itself
    _words("yanked", null=True),  # why nobody is to choose it; who names it exactly still gets it
    _words("created_at"),
    _words("created_by"),
    _words("updated_at"),
    _key("id"),
    UniqueConstraint("model_id", "number"),
    UniqueConstraint("model_id", "semver_key"),  # build metadata makes no other version
    CheckConstraint("number > 0", name="number"),
    CheckConstraint("size_bytes >= 0", name="size_bytes"),
    CheckConstraint("status in ('pending', 'ready', 'failed', 'deleted')", name="status"),
    Index(None, "digest", "model_id", "semver_key"),  # the highest of a model with some content
    Index(None, "created_at", "id"),
    Index(None, "model_id", "created_at", "id"),
    Index(None, "semver_key", "created_at", "id"),  # a semver names versions of many models
    _where("ix_versions_run_id", "run_id", "created_at", "id", condition="run_id is not null"),
    _where("ix_versions_identity", "identity", "model_id", "semver_key", condition="identity is not null"),
    _where("ix_versions_code_commit", "code_commit", condition="code_commit is not null"),
)

version_files = _table(
    "version_files",
    _words("version_id", ForeignKey("versions.id")),
    _words("path"),
    _words("digest"),
    _whole("size_bytes"),
    _words("media_type"),
    _key("version_id", "path"),
    Index(None, "digest"),  # a blob that stands here is never collected
    clustered=True,
)

version_metrics = _table(
    "version_metrics",
    _words("version_id", ForeignKey("versions.id")),
    _words("name"),  # `auc` or `auc@test`, as `registration.searchable` names them
    _double("value"),
    _key("version_id", "name"),
    Index(None, "name", "value"),
    clustered=True,
)

version_params = _table(
    "version_params",
    _words("version_id", ForeignKey("versions.id")),
    _words("key"),
    _words("value"),
    _words("value_head"),
    _double("number", null=True),
    _key("version_id", "key"),
    Index(None, "key", "value_head", "version_id"),
    _where("ix_version_params_key_number", "key", "number", condition="number is not null"),
    clustered=True,
)

version_tags = _table(
    "version_tags",
    _words("version_id", ForeignKey("versions.id")),
    _words("key"),
    _words("value"),
    _words("value_head"),
    _double("number", null=True),
    _key("version_id", "key"),
    Index(None, "key", "value_head", "version_id"),
    _where("ix_version_tags_key_number", "key", "number", condition="number is not null"),
    clustered=True,
)

aliases = _table(
    "aliases",
    _words("model_id"),
    _words("alias"),
    _whole("number"),
    _flag("protected"),
    _words("updated_at"),
    _words("updated_by"),
    _key("model_id", "alias"),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    Index(None, "model_id", "number"),
    Index(None, "alias"),
    clustered=True,
)

drafts = _table(
    "drafts",
    _words("id"),
    _words("project"),
    _words("name"),  # the model may not exist yet
    _words("status"),
    _words("document"),  # JSON of the DraftSpec
    _whole("number", null=True),  # of the version that it ended in, new or found to be there already
    _whole("made", null=True),  # whether that version was new
    _words("created_at"),
    _words("created_by"),
    _words("touched_at"),
    _key("id"),
    CheckConstraint("status in ('open', 'ready', 'cancelled')", name="status"),
    Index(None, "status", "touched_at"),
    Index(None, "project", "name", "status"),
)

draft_files = _table(
    "draft_files",
    _words("draft_id", ForeignKey("drafts.id")),
    _words("path"),
    _whole("size_bytes"),
    _words("digest"),
    _words("media_type"),
    _whole("received_bytes"),
    _flag("present"),
    _key("draft_id", "path"),
    CheckConstraint("received_bytes between 0 and size_bytes", name="received_bytes"),
    Index(None, "digest"),
    clustered=True,
)

damaged_blobs = _table("damaged_blobs", _words("digest"), _words("found_at"), _key("digest"), clustered=True)
"""Contents whose stored bytes were found to be others, until they are sent again or found right."""

small_contents = _table(
    "small_contents",
    _whole("id"),  # of one upload: equal contents may stand here several times
    _words("digest"),
    _content("data"),
    _key("id"),
)
"""Small files that a loss of power may still take from their places, which puts them back from here."""

# -------------------------------------------------------------------------------------------------- promotion

occupancy = _table(
    "occupancy",
    _words("model_id"),
    _whole("number"),
    _words("stage"),
    _flag("exclusive"),
    _words("since_at"),
    _whole("since_sequence"),
    _key("model_id", "number"),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    _where("uq_occupancy_exclusive", "model_id", "stage", condition="exclusive = 1", unique=True),
    Index(None, "model_id", "stage", "number"),
    clustered=True,
)
"""Where each version stands now; one without a row stands in the first stage of its model."""

stage_intervals = _table(
    "stage_intervals",
    _words("model_id", ForeignKey("models.id")),
    _words("stage"),
    _whole("number"),
    _words("semver"),
    _words("from_at"),
    _whole("from_sequence"),
    _words("to_at", null=True),
    _whole("to_sequence", null=True),
    _words("cause"),
    _words("actor"),
    _words("reason"),
    _words("request_id", null=True),
    _words("rollout_id", null=True),
    _words("approved_by"),
    _key("model_id", "number", "from_sequence"),
    CheckConstraint("(to_at is null) = (to_sequence is null)", name="closed"),
    _where("uq_stage_intervals_open", "model_id", "number", condition="to_sequence is null", unique=True),
    Index(None, "model_id", "stage", "from_sequence"),
    Index(None, "model_id", "stage", "from_at"),
)
"""Who stood where, from when to when: a fold of the events, kept so that the past is one indexed read."""

requests = _table(
    "requests",
    _words("id"),
    _words("model_id", ForeignKey("models.id")),
    _whole("number"),
    _words("stage"),
    _words("state"),
    _words("document"),
    _words("created_by"),
    _words("created_at"),
    _words("expires_at"),
    _words("closed_at", null=True),
    _key("id"),
    ForeignKeyConstraint(["model_id", "number"], ["versions.model_id", "versions.number"]),
    Index(None, "model_id", "state", "created_at"),
    Index(None, "state", "created_at"),
    _where("ix_requests_open_expires_at", "expires_at", condition="state = 'open'"),
)

approvals = _table(
    "approvals",
    _words("request_id", ForeignKey("requests.id")),
    _whole("position"),  # 1, 2, 3 in the order they came
    _words("principal"),
    _words("vote"),
    _words("at"),
    _words("dismissed", null=True),  # why it no longer counts
    _words("document"),
    _key("request_id", "position"),
    Index(None, "principal", "at"),
    _where(
        "uq_approvals_counting",
        "request_id",
        "principal",
        condition="dismissed is null and vote <> 'comment'",
        unique=True,
    ),
)

policies = _table(
    "policies",
    _words("scope"),  # '' for all, 'project' or 'project/model'
    _whole("version"),
    _words("digest"),
    _words("document"),
    _words("created_at"),
    _words("created_by"),
    _key("scope", "version"),
    CheckConstraint("version > 0", name="version"),
)

# ---------------------------------------------------------------------------------------------------- rollout

endpoints = _table(
    "endpoints",
    _words("name"),
    _words("id"),
    _words("model_id", ForeignKey("models.id")),
    _words("stage"),  # what it follows; an alias stands behind an @
    _words("document"),
    _words("rollout_id", null=True),  # the one that runs
    _whole("row_version"),  # rises with each change; an update names the one it read
    _words("created_at"),
    _words("created_by"),
    _words("updated_at"),
    _key("name"),
    UniqueConstraint("id"),
    Index(None, "model_id", "stage"),
)

rollouts = _table(
    "rollouts",
    _words("id"),
    _words("endpoint"),  # its name: no key, for the history of a rollout outlives its endpoint
    _words("model_id", ForeignKey("models.id")),
    _words("state"),
    _flag("active"),
    _words("document"),
    _whole("row_version"),
    _words("due_at", null=True),  # when the controller has to look again, if nothing wakes it before
    _words("lease_owner", null=True),
    _words("lease_until", null=True),
    _whole("lease_term"),  # rises with each new owner; what an older one sends is refused
    _words("started_at"),
    _words("finished_at", null=True),
    _key("id"),
    CheckConstraint("(lease_owner is null) = (lease_until is null)", name="lease"),
    _where("uq_rollouts_active", "endpoint", condition="active = 1", unique=True),
    _where("ix_rollouts_due", "due_at", condition="active = 1"),
    Index(None, "endpoint", "started_at"),
    Index(None, "model_id", "started_at"),
)

rollout_ticks = _table(
    "rollout_ticks",
    _words("gateway"),
    _words("endpoint"),
    _words("rollout_id"),  # '' while none runs
    _whole("number"),
    _words("document"),
    _words("received_at"),
    _key("gateway", "endpoint", "rollout_id", "number"),  # a tick that is sent twice counts once
    Index(None, "rollout_id", "received_at"),
    Index(None, "received_at"),
)

gateways = _table(
    "gateways",
    _words("name"),
    _words("document"),  # its last report, without the ticks
    _whole("table_number"),
    _words("seen_at"),
    _key("name"),
)

# ----------------------------------------------------------------------------------------------------- access

principals = _table(
    "principals",
    _words("name"),
    _words("kind"),
    _flag("disabled"),
    _words("created_at"),
    _words("created_by"),
    _key("name"),
    CheckConstraint("kind in ('user', 'service')", name="kind"),
)

tokens = _table(
    "tokens",
    _words("id"),
    _words("secret_hash"),
    _words("principal", ForeignKey("principals.name")),
    _words("label"),
    _words("verbs", null=True),  # JSON list; null is whatever the principal may
    _words("project", null=True),
    _words("created_at"),
    _words("expires_at"),
    _words("revoked_at", null=True),
    _words("last_used_on", null=True),  # a day, so that use does not mean a write each time
    _key("id"),
    UniqueConstraint("secret_hash"),
    Index(None, "principal", "created_at"),
)

grants = _table(
    "grants",
    _words("id"),
    _words("principal", ForeignKey("principals.name")),
    _words("role"),
    _words("project", null=True),
    _words("model", null=True),
    _words("effect"),
    _words("created_at"),
    _words("created_by"),
    _key("id"),
    CheckConstraint("effect in ('allow', 'deny')", name="effect"),
    CheckConstraint("model is null or project is not null", name="scope"),
    Index(None, "principal"),
)

idempotency = _table(
    "idempotency",
    _words("principal"),
    _words("key"),
    _words("request_hash"),
    _whole("status"),
    _words("response"),
    _words("created_at"),
    _key("principal", "key"),
    Index(None, "created_at"),
)
"""What was answered to a write with an idempotency key, to be answered again instead of done again."""
