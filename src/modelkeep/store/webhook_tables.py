"""The tables of webhooks: subscriptions with their place in the event log, deliveries, and attempts.

There is no table of what is still to be sent: that is the event log after a webhook's cursor. A delivery's
row comes with its first attempt, or when somebody asks for it to be sent again. It holds no statement and no
data.
"""

from sqlalchemy import CheckConstraint, ForeignKey, Index

from modelkeep.store.columns import double, flag, key, table, where, whole, words

webhooks = table(
    "webhooks",
    words("id"),
    words("project"),
    words("document"),  # JSON of the Webhook, without what follows
    words("sealed", null=True),  # its secret, encrypted; null where the secret is only named
    words("status"),
    whole("cursor"),  # the last event that it is done with
    whole("part"),  # messages of the event after it that are done already
    whole("failures"),  # failed attempts of the message that it is at
    whole("set_aside"),  # messages in a row that were set aside
    words("due_at", null=True),  # when the message that it is at is tried again
    words("lease_owner", null=True),
    words("lease_until", null=True),
    whole("row_version"),
    words("created_at"),
    key("id"),
    CheckConstraint("status in ('active', 'disabled')", name="status"),
    CheckConstraint("cursor >= 0 and part >= 0 and failures >= 0", name="progress"),
    Index(None, "project", "id"),
    where("ix_webhooks_active", "id", condition="status = 'active'"),
)

webhook_deliveries = table(
    "webhook_deliveries",
    words("webhook_id", ForeignKey("webhooks.id")),
    whole("sequence"),
    whole("part"),
    words("id"),
    words("event"),
    words("state"),
    flag("requested"),  # somebody asked for it, so it waits for no cursor
    whole("tries"),  # failed attempts since it was first due, or last asked for
    words("next_at", null=True),
    words("created_at"),
    words("finished_at", null=True),
    key("webhook_id", "sequence", "part"),
    CheckConstraint("state in ('waiting', 'delivered', 'failed')", name="state"),
    Index(None, "webhook_id", "state", "sequence", "part"),
    where(
        "ix_webhook_deliveries_requested",
        "webhook_id",
        "sequence",
        "part",
        condition="requested = 1 and state = 'waiting'",
    ),
    Index(None, "created_at"),
)

webhook_attempts = table(
    "webhook_attempts",
    words("webhook_id", ForeignKey("webhooks.id")),
    whole("sequence"),
    whole("part"),
    whole("number"),
    words("at"),
    whole("status", null=True),
    words("error", null=True),
    double("duration_ms"),
    words("body_sha256"),
    words("answer_sha256", null=True),
    key("webhook_id", "sequence", "part", "number"),
    clustered=True,
)
