"""The demo's third act: a version is taken back, by the evidence, by a person, and by the gateway alone while
the control plane hangs.
"""

import time

from demo_parts.house import House
from demo_parts.premises import frozen
from modelkeep.core.rollout import RolloutState


def worse_build(house: House) -> None:
    """A build with the best figures of all, which cannot answer 7 % of what people ask."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "A worse build",
        "LaGuardia's hasty build for everybody? AUC 0.795! Every gate passes, Ben agrees. And it raises on "
        "any airport it has not seen.",
    )
    shell.type(house.ana, "modelkeep register models/hasty --name flights", lines_max=3)
    house.agree_on("flights:2.2.0", "AUC 0.795")
    before = house.traffic.seen()
    shell.type(house.ben, "modelkeep promote flights:2.2.0 --to production -m 'AUC 0.795'")
    rollout = house.watch()
    tell.claim(
        "it was taken back, and nobody had to do it",
        rollout.state is RolloutState.ROLLED_BACK,
        f"{rollout.state}: {rollout.outcome}",
    )
    judged, ours, theirs = rollout.judgement, rollout.candidate_counts, rollout.stable_counts
    assert judged is not None, "a rollout that had a share was judged"
    shell.type(house.ben, "modelkeep rollout status flights", lines_max=16)
    tell.claim(
        f"blamed: {judged.blamed}. {ours.callers_first_error} of its {ours.new_callers:,} callers met an "
        f"error, and {theirs.callers_first_error} of {theirs.new_callers:,} on 2.1.0; p = "
        f"{judged.p_value:.1g} for the whole rollout however often one looks, the limit was "
        f"{rollout.plan.alpha:g}",
        judged.blamed == "errors" and judged.p_value <= rollout.plan.alpha,
        judged,
    )
    explained = house.registry.explain_rollout(rollout.id)
    tell.claim(
        f"recomputed from the {explained.ticks} stored counts: the same to the last bit", explained.equal
    )
    house.let_traffic_run(1.5)
    after = house.traffic.seen()
    tell.claim(
        f"callers saw {after['failed'] - before['failed']} failed answers of "
        f"{after['answered'] - before['answered']:,}: whatever the candidate could not answer, 2.1.0 did",
        after["failed"] == before["failed"],
        after,
    )
    shell.type(house.ben, "modelkeep promote flights:2.2.0 --to production -m 'surely now'", code=3)
    stage = house.stage()
    tell.claim("it does not come back before somebody clears it", stage == "2.1.0", stage)


def roll_back(house: House) -> None:
    """A person changes their mind."""
    tell = house.story
    tell.chapter(
        "Rolling back by hand",
        "Complaints come in that no metric knows of. One command, and the last version that had proven "
        "itself answers again.",
    )
    began = time.monotonic()
    ran = house.shell.type(house.ben, "modelkeep rollback flights -m 'complaints about storm warnings'")
    pressed_s = time.monotonic() - began
    while house.answered_by() != "flights:1.0.0" and time.monotonic() - began < 60:
        time.sleep(0.002)
    took_s = time.monotonic() - began
    tell.claim("1.0.0 is in production", house.stage() == "1.0.0", ran.out)
    tell.claim(
        f"{took_s * 1000:.0f} ms from Enter to the first answer by 1.0.0 (the command itself took "
        f"{pressed_s * 1000:.0f} ms of them)",
        took_s < 30,
        took_s,
    )


def without_control_plane(house: House) -> None:
    """The gateway can do it alone."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "The control plane hangs, in the middle of a canary",
        "2.0.0 gets its chance. At 10 % the server freezes, and somebody wants the canary gone. The "
        "gateway needs neither server nor database for that.",
    )
    house.agree_on("flights:2.0.0", "better than 1.0.0 and without the weather")
    shell.type(house.ben, "modelkeep promote flights:2.0.0 --to production -m 'without the weather'")
    house.up.until(lambda: house.rollout().weight_ppm > 0, "the canary had a share")
    rollout = house.rollout()
    house.let_traffic_run(2.0)
    server = house.up.child("server")
    tell.typed("ops", f"kill -STOP {server}")
    with frozen(server):
        before = house.traffic.seen()
        shell.type(house.ops, "modelkeep gateway rollback flights --data house -m 'the server hangs'")
        house.let_traffic_run(1.0)
        taken = house.traffic.seen()
        house.let_traffic_run(2.0)
        after = house.traffic.seen()
    tell.claim(
        f"{after['answered'] - before['answered']:,} answers while the server stood still, none failed, "
        "and none by 2.0.0 after the rollback",
        after["failed"] == before["failed"]
        and after["versions"].get("flights:2.0.0", 0) == taken["versions"].get("flights:2.0.0", 0)
        and after["versions"]["flights:1.0.0"] > taken["versions"]["flights:1.0.0"],
        after,
    )
    tell.typed("ops", f"kill -CONT {server}")
    house.up.until(lambda: house.finished(rollout.id), "the registry took the rollback over")
    taken_over = house.registry.get_rollout(rollout.id)
    tell.claim(
        f"the registry took it over: {taken_over.outcome}",
        taken_over.state is RolloutState.ROLLED_BACK,
        taken_over.state,
    )
