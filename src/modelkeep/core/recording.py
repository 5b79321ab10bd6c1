"""What of a prediction may be kept: how each field is treated before it is written down.

A gateway's prediction log obeys this, and whoever sets it up says it per endpoint. Which requests are kept is
a share in the route; writing and reading the log is not done here.
"""

from enum import StrEnum

from msgspec import Struct

from modelkeep.core import errors, values
from modelkeep.core.signature import FIELD_NAME_MAX, FIELDS_MAX


class Treatment(StrEnum):
    """What becomes of a field's values in the prediction log."""

    KEEP = "keep"
    HASH = "hash"
    """A keyed hash: equal values stay equal, and nobody without the gateway's key learns which."""
    DROP = "drop"


class Privacy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The treatment of each field, inputs and outputs by name; `others` holds for those not named."""

    fields: dict[str, Treatment] = {}
    others: Treatment = Treatment.KEEP

    def of(self, name: str) -> Treatment:
        """The treatment of one field."""
        return self.fields.get(name, self.others)


KEEP_ALL = Privacy()
"""Every field is kept as it is."""


def check_privacy(privacy: Privacy) -> Privacy:
    """Refuse a filter that no signature could fit.

    Raises:
        Invalid: too many names, or one that no field can have.
    """
    if len(privacy.fields) > 2 * FIELDS_MAX:
        raise errors.Invalid(
            f"A privacy filter names at most {2 * FIELDS_MAX:,} fields; set 'others' instead.",
            field="privacy",
        )
    for name in privacy.fields:
        if not name.strip() or len(name) > FIELD_NAME_MAX:
            raise errors.Invalid(
                f"{values.quoted(name, 60)} cannot be a field's name; name one of the signature's fields.",
                field="privacy",
            )
    return privacy
