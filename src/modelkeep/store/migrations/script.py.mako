"""${message}. It does only this step; the schema as a whole stands in `store.schema`."""

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Change the schema; a release of the step before must still run on the result."""
    ${upgrades if upgrades else "pass"}
