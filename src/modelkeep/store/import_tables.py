"""The tables of what moved in: from which registries, and what everything there is called here.

Rows are written in the act that makes what they name, so that an import which broke off goes on where it was.
It holds no statement and no data.
"""

from sqlalchemy import ForeignKey, Index, UniqueConstraint

from modelkeep.store.columns import flag, key, table, whole, words

import_sources = table(
    "import_sources",
    whole("serial"),
    words("address"),
    words("project"),
    words("created_at"),
    words("created_by"),
    key("serial"),
    UniqueConstraint("address"),
)

imported = table(
    "imported",
    whole("source", ForeignKey("import_sources.serial")),
    words("kind"),
    words("foreign_id"),
    words("ours"),
    flag("done"),
    key("source", "kind", "foreign_id"),
    Index(None, "source", "kind", "done"),
    clustered=True,
)
