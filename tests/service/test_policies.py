"""Policy documents are read before a transaction begins, and only for those who may set them."""

import pytest

from modelkeep.core import errors
from modelkeep.core.access import Role
from modelkeep.core.policy import TEAM
from modelkeep.service.policies import Policies
from tests.service.catalog_world import CHURN, OWNER, World, context

pytestmark = pytest.mark.req("G3")


def test_a_document_that_was_read_is_set_as_it_stands(world: World) -> None:
    """Reading it first, and setting it with bytes, come to the same policy."""
    policies = Policies(TEAM)
    world.do(OWNER, world.catalog.create_model, CHURN)
    document = b"name: ours\nversioning: {extends: default, metric_tolerance: 0.01}\n"

    read = policies.read(world.desk, OWNER, "churn", document)
    first = world.do(OWNER, policies.set, "churn", read)
    again = world.do(OWNER, policies.set, "churn", document)

    assert first == again
    assert (first.version, first.policy.versioning.metric_tolerance) == (1, 0.01)


def test_nobody_has_a_document_read_who_may_not_set_it(world: World) -> None:
    """The right is asked for before the text is looked at, and no write begins for what is no policy."""
    policies = Policies(TEAM)
    world.do(OWNER, world.catalog.create_model, CHURN)

    with pytest.raises(errors.NotAllowed):
        policies.read(world.desk, context("cid", Role.CONTRIBUTOR), "churn", b"{broken")
    with pytest.raises(errors.ModelNotFound):
        policies.read(world.desk, context("sid"), "churn", b"{broken")
    with pytest.raises(errors.InvalidPolicy):
        policies.read(world.desk, OWNER, "churn", b"{broken")
    with pytest.raises(errors.InvalidPolicy, match="no kind of difference"):
        policies.read(
            world.desk,
            OWNER,
            None,
            b"name: p\nversioning: {rules: [{name: x, any_of: [weihgts], bump: major}]}",
        )
