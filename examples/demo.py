"""One model's whole life in two minutes: trained, registered, compared, approved, rolled out by canary under
real traffic, taken back when it is worse, and proven afterwards. `make demo` runs it.

The story is the text below, read from top to bottom. Every command is run as a person would type it, and
every claim (a line with a tick) is checked: the first that does not hold ends the demo with exit code 1.
Everything lives in a temporary folder, on ports nobody uses, and is gone afterwards; KEEP=1 leaves it
running. How commands are run, rollouts watched and processes ended stands in demo_parts/.
"""

import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from demo_parts import training
from demo_parts.narration import Broken, Story
from demo_parts.premises import Premises, Traffic, free_ports, frozen, polite_signals
from demo_parts.shell import PROGRAMS, Person, Shell
from demo_parts.watching import watch

from modelkeep import Client, errors
from modelkeep.core.rollout import Rollout, RolloutState

TOKEN = re.compile(r"\bmk_[A-Za-z0-9]+_[A-Za-z0-9]{12}_[A-Za-z0-9]{38}\b")
"""How a token looks."""
RATE = 280
"""Questions a second: an airline's app on a Monday morning, and little for two cores."""

POLICY = """\
schema: modelkeep.policy/v1
name: flights
description: What is looked at before a passenger is told anything, and who has to agree.
stages:
  staging:
    gates:
      - {gate: files_verified}
  production:
    gates:
      - {gate: files_verified}
      - {gate: signature}
      - {gate: metadata, fields: [business.owner, business.use_case]}
      - {gate: metric, name: auc, split: validation, min: 0.7}
      - {gate: better_than, metric: auc, split: validation}
    approvals: {count: 1}
"""


class Demo:
    """The people, the place and the running programs; each method is a chapter."""

    def __init__(self, story: Story, premises: Premises) -> None:
        self.story = story
        self.premises = premises
        self.shell = Shell(story, premises.folder)
        self.rows = premises.folder / "flights.jsonl"
        self.port, self.gateway_port = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self.predict = f"http://127.0.0.1:{self.gateway_port}/endpoints/flights/predict"
        self.ops = Person("ops", None)

    def tell(self) -> None:
        """The whole story."""
        for chapter in (
            self.train,
            self.open_house,
            self.register,
            self.first_version,
            self.ask,
            self.canary,
            self.worse_build,
            self.roll_back,
            self.without_control_plane,
            self.look_back,
            self.flip_a_byte,
            self.close,
        ):
            chapter()

    # ------------------------------------------------------------------------------------------------ before

    def train(self) -> None:
        """Three versions that a person would make."""
        tell = self.story
        tell.chapter(
            "Training",
            "Will this flight arrive more than 30 minutes late? Ana has every flight that left New York from "
            "January to mid-March 2013, and tries three ways to say so an hour before departure.",
        )
        for variant in ("baseline", "boosted", "wide"):
            tell.typed("ana", training.command(variant))
        printed = training.train(("wide", "boosted", "baseline"), self.premises.folder, self.rows)
        for variant in ("baseline", "boosted", "wide"):
            tell.printed(printed[variant])
        models = sorted(path.parent.name for path in self.premises.folder.glob("models/*/model.onnx"))
        tell.claim("three models and their metadata are there", len(models) == 3, models)

    def open_house(self) -> None:
        """A server with users and a policy."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "A registry, a gateway, and who may do what",
            "One command starts both. Nobody gets in without a token: Ana may register and ask, and review "
            "what others ask for; Ben looks after the models. What has to hold before production is a file.",
        )
        line = f"modelkeep up --data house --port {self.port} --gateway-port {self.gateway_port} --auth token"
        tell.typed("ops", line)
        began = time.monotonic()
        self.house = self.premises.start("up", line.split())
        self.house.until(lambda: TOKEN.search(self.house.log.read_text()) is not None, "it was ready")
        took = time.monotonic() - began
        admin = self._first_token()
        shell.url = self.url
        tell.claim(f"ready {took:.1f} s after Enter", took < 20, took)
        self.admin = Person("admin", admin)
        self.ana, self.ben = self._person("ana"), self._person("ben")
        for line in (
            "modelkeep grant add ana contributor --on default/",
            "modelkeep grant add ana approver --on default/",
            "modelkeep grant add ben maintainer --on default/",
        ):
            shell.type(self.admin, line, quiet=True)
        (self.premises.folder / "policy.yaml").write_text(POLICY)
        self.registry = Client(self.url, self.ben.token)
        tell.typed("ben", "cat policy.yaml")
        tell.printed(POLICY)

    def register(self) -> None:
        """Three versions, their numbers, and the best of them."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "Registering and comparing",
            "Each folder becomes a version that never changes again. Its number is worked out from what "
            "changed, and the reasons are kept.",
        )
        for variant in ("baseline", "boosted", "wide"):
            shell.type(self.ana, f"modelkeep register models/{variant} --name flights", lines_max=4)
        numbers = [version.semver for version in self.registry.list_versions("flights")]
        tell.claim(
            "another kind of model is a major step, new weights behind the same signature a minor one: "
            "1.0.0, 2.0.0, 2.1.0",
            sorted(numbers) == ["1.0.0", "2.0.0", "2.1.0"],
            numbers,
        )
        again = shell.type(self.ana, "modelkeep register models/wide --name flights")
        tell.claim("equal bytes are not registered twice", "2.1.0" in again.out, again.out)
        shell.type(self.ana, "modelkeep compare flights --metrics auc,logloss,brier")
        shell.type(self.ana, "modelkeep best flights -m auc")
        best = self.registry.best("flights", "auc").best
        tell.claim("the best is 2.1.0, which reads the weather", best.semver == "2.1.0", best.semver)
        shell.type(self.ben, "modelkeep policy set flights --file policy.yaml", lines_max=2)

    def first_version(self) -> None:
        """Something has to be live before there can be a canary."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "The first version goes live",
            "An endpoint follows the stage 'production'. Whatever is promoted from now on comes in by "
            "canary: to 10 %, 50 %, 100 % of the callers, at least 8 seconds each.",
        )
        self._agree_on("flights:1.0.0", "the first one")
        shell.type(
            self.ben,
            "modelkeep endpoint create flights --model flights --follows production --key-header x-user-id "
            "--slow-ms 1000 --step 10%:8 --step 50%:8 --step 100%:8",
        )
        shell.type(self.ben, "modelkeep promote flights:1.0.0 --to production -m 'the first one'")
        rollout = self._rollout()
        self.house.until(lambda: self._finished(rollout.id), "the first version was served")
        stage = self._stage()
        tell.claim("loaded, served, and so in production: 1.0.0", stage == "1.0.0", self._rollout().outcome)
        row = '{"inputs": [...]}'
        tell.typed("app", f"curl {self.predict} -H 'x-user-id: N566UW/14C' -d '{row}'")
        self.traffic = Traffic(self.premises, self.predict, self.rows, RATE)
        self._let_traffic_run(2.0)
        seen = self.traffic.seen()
        tell.claim(
            f"another process now asks {RATE} times a second, with real flights from April on; so far "
            f"{seen['answered']:,} answers to {seen['callers']:,} callers, all by 1.0.0, none failed",
            seen["failed"] == 0 and set(seen["versions"]) == {"flights:1.0.0"},
            seen,
        )

    # ------------------------------------------------------------------------------------------------- moving

    def ask(self) -> None:
        """Four eyes."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "Asking for production",
            "Ana asks, and cannot also agree: the gates look at stored facts, and one other person at Ana's.",
        )
        shell.type(self.ana, "modelkeep request flights:2.1.0 --to production -m 'reads the weather'")
        request = self._open_request()
        refused = shell.type(self.ana, f"modelkeep review {request} --approve", code=3)
        tell.claim("nobody approves their own request", self._open_request() == request, refused.err)
        shell.type(self.ben, f"modelkeep review {request} --approve -m 'better at all three'", lines_max=3)
        approved = self.registry.get_request(request)
        tell.claim(
            "the approval is bound to these bytes, this evidence and this policy",
            [review.seen == approved.seen for review in approved.reviews] == [True],
            approved.reviews,
        )

    def canary(self) -> None:
        """The good version comes in, step by step."""
        tell = self.story
        tell.chapter(
            "A canary under real traffic",
            "Callers stick to a version. A step needs its time, and a proof that the candidate is good "
            "enough; without proof it waits.",
        )
        before = self.traffic.seen()
        self.shell.type(self.ben, "modelkeep promote flights:2.1.0 --to production -m 'AUC 0.747'")
        rollout = self._watch()
        tell.claim("the canary succeeded", rollout.state is RolloutState.SUCCEEDED, rollout.outcome)
        stage = self._stage()
        tell.claim("and only now the stage moved: 2.1.0 is in production", stage == "2.1.0", stage)
        self._let_traffic_run(1.5)
        self.wide_was_live = datetime.now(UTC)
        after = self.traffic.seen()
        tell.claim(
            f"{after['answered'] - before['answered']:,} answers meanwhile, and not one failed",
            after["failed"] == before["failed"],
            after,
        )
        tell.claim("no caller was sent back and forth", after["moved_back"] == 0, after["moved_back"])
        self.shell.type(self.ben, "modelkeep gate flights:2.0.0 --to production --explain", code=3)
        tell.claim("a version that is worse than the one that is live is refused, and told why", True)

    def worse_build(self) -> None:
        """A build with the best figures of all, which cannot answer 7 % of what people ask."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "A worse build",
            "Ana is in a hurry: one week of data, rare destinations dropped as noise, tested on the same "
            "week. AUC 0.795! Every gate passes, Ben agrees. And it raises on any airport it has not seen.",
        )
        shell.type(self.ana, training.command("hasty"))
        shell.type(self.ana, "modelkeep register models/hasty --name flights", lines_max=3)
        self._agree_on("flights:2.2.0", "AUC 0.795")
        before = self.traffic.seen()
        shell.type(self.ben, "modelkeep promote flights:2.2.0 --to production -m 'AUC 0.795'")
        rollout = self._watch()
        tell.claim(
            "it was taken back, and nobody had to do it",
            rollout.state is RolloutState.ROLLED_BACK,
            f"{rollout.state}: {rollout.outcome}",
        )
        judged, ours, theirs = rollout.judgement, rollout.candidate_counts, rollout.stable_counts
        assert judged is not None, "a rollout that had a share was judged"
        shell.type(self.ben, "modelkeep rollout status flights", lines_max=16)
        tell.claim(
            f"blamed: {judged.blamed}. {ours.callers_first_error} of its {ours.new_callers:,} callers met an "
            f"error, and {theirs.callers_first_error} of {theirs.new_callers:,} on 2.1.0; p = "
            f"{judged.p_value:.1g} for the whole rollout however often one looks, the limit was "
            f"{rollout.plan.alpha:g}",
            judged.blamed == "errors" and judged.p_value <= rollout.plan.alpha,
            judged,
        )
        explained = self.registry.explain_rollout(rollout.id)
        tell.claim(
            f"recomputed from the {explained.ticks} stored counts: the same to the last bit", explained.equal
        )
        self._let_traffic_run(1.5)
        after = self.traffic.seen()
        tell.claim(
            f"callers saw {after['failed'] - before['failed']} failed answers of "
            f"{after['answered'] - before['answered']:,}: whatever the candidate could not answer, 2.1.0 did",
            after["failed"] == before["failed"],
            after,
        )
        shell.type(self.ben, "modelkeep promote flights:2.2.0 --to production -m 'surely now'", code=3)
        stage = self._stage()
        tell.claim("it does not come back before somebody clears it", stage == "2.1.0", stage)

    # ------------------------------------------------------------------------------------------------- back

    def roll_back(self) -> None:
        """A person changes their mind."""
        tell = self.story
        tell.chapter(
            "Rolling back by hand",
            "Complaints come in that no metric knows of. One command, and the last version that had proven "
            "itself answers again.",
        )
        began = time.monotonic()
        ran = self.shell.type(self.ben, "modelkeep rollback flights -m 'complaints about storm warnings'")
        pressed_s = time.monotonic() - began
        while self._answered_by() != "flights:1.0.0" and time.monotonic() - began < 20:
            time.sleep(0.002)
        took_s = time.monotonic() - began
        tell.claim("1.0.0 is in production", self._stage() == "1.0.0", ran.out)
        tell.claim(
            f"{took_s * 1000:.0f} ms from Enter to the first answer by 1.0.0 (the command itself took "
            f"{pressed_s * 1000:.0f} ms of them)",
            took_s < 10,
            took_s,
        )

    def without_control_plane(self) -> None:
        """The gateway can do it alone."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "The control plane hangs, in the middle of a canary",
            "2.0.0 gets its chance. At 10 % the server freezes, and somebody wants the canary gone. The "
            "gateway needs neither server nor database for that.",
        )
        self._agree_on("flights:2.0.0", "better than 1.0.0 and without the weather")
        shell.type(self.ben, "modelkeep promote flights:2.0.0 --to production -m 'without the weather'")
        self.house.until(lambda: self._rollout().weight_ppm > 0, "the canary had a share")
        rollout = self._rollout()
        self._let_traffic_run(2.0)
        server = self.house.child("server")
        tell.typed("ops", f"kill -STOP {server}")
        with frozen(server):
            before = self.traffic.seen()
            shell.type(self.ops, "modelkeep gateway rollback flights --data house -m 'the server hangs'")
            self._let_traffic_run(1.0)
            taken = self.traffic.seen()
            self._let_traffic_run(2.0)
            after = self.traffic.seen()
        tell.claim(
            f"{after['answered'] - before['answered']:,} answers while the server stood still, none failed, "
            "and none by 2.0.0 after the rollback",
            after["failed"] == before["failed"]
            and after["versions"].get("flights:2.0.0", 0) == taken["versions"].get("flights:2.0.0", 0)
            and after["versions"]["flights:1.0.0"] > taken["versions"]["flights:1.0.0"],
            after,
        )
        tell.typed("ops", f"kill -CONT {server}")
        self.house.until(lambda: self._finished(rollout.id), "the registry took the rollback over")
        taken_over = self.registry.get_rollout(rollout.id)
        tell.claim(
            f"the registry took it over: {taken_over.outcome}",
            taken_over.state is RolloutState.ROLLED_BACK,
            taken_over.state,
        )

    # ------------------------------------------------------------------------------------------------- proof

    def look_back(self) -> None:
        """What was when, and how one knows."""
        tell, shell = self.story, self.shell
        tell.chapter(
            "What was live, and who says so?",
            "The log is the record: every change was written together with its event, and every event is "
            "chained to the one before it.",
        )
        at = self.wide_was_live.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        shell.type(self.ana, f"modelkeep whatwas flights#production --at {at}")
        was = self.registry.whatwas("flights#production", self.wide_was_live)
        tell.claim(
            "at that moment it was 2.1.0, approved by ben",
            was.version.semver == "2.1.0" and "ben" in was.approved_by,
            was,
        )
        shell.type(self.ben, "modelkeep history flights", lines_max=24)
        shell.type(self.admin, "modelkeep audit verify")

    def flip_a_byte(self) -> None:
        """Bytes are not believed, they are checked."""
        tell, shell = self.story, self.shell
        tell.chapter("One flipped byte", "A disk lies, or a person does. One byte of a stored model changes.")
        version = self.registry.get_version("flights:2.1.0")
        entry = next(file for file in version.files if file.path == "model.onnx")
        name = entry.digest.removeprefix("sha256:")
        blob = self.premises.folder / "house" / "blobs" / "sha256" / name[:2] / name[2:]
        _flip(blob, entry.size_bytes // 2)
        where = f"byte {entry.size_bytes // 2:,} of {blob.relative_to(self.premises.folder)}"
        tell.row(f"(changed: {where})")
        found = shell.type(self.admin, "modelkeep fsck", code=1)
        tell.claim("fsck finds it and names the version", "2.1.0" in found.out + found.err, found.out)
        _flip(blob, entry.size_bytes // 2)
        tell.row("(and put back)")
        shell.type(self.admin, "modelkeep fsck")
        tell.claim("and is content again", True)

    def close(self) -> None:
        """What the callers saw of all this."""
        tell = self.story
        tell.chapter("The callers", "None of them knows that anything happened.")
        seen = self.traffic.end()
        latency = seen["latency_ms"]
        shares = sorted(seen["versions"].items())
        tell.row(", ".join(f"{count:,} answers by {name}" for name, count in shares))
        tell.row(f"half of them within {latency['p50']} ms, 99 % within {latency['p99']} ms")
        tell.claim(
            f"{seen['answered']:,} answers to {seen['callers']:,} callers, and {seen['failed']} failed",
            seen["failed"] == 0,
            seen,
        )

    # ------------------------------------------------------------------------------------------ small steps

    def _first_token(self) -> str:
        """The admin's token, which the first start shows once."""
        found = TOKEN.search(self.house.log.read_text())
        if found is None:
            raise Broken(f"the first start shows no token; it said:\n{self.house.last_words()}")
        return found.group()

    def _person(self, name: str) -> Person:
        """Add somebody, and make a token for their shell."""
        self.shell.type(self.admin, f"modelkeep user create {name}", quiet=True)
        made = self.shell.type(self.admin, f"modelkeep token create --for {name}", quiet=True)
        found = TOKEN.search(made.out)
        if found is None:
            raise Broken(f"'modelkeep token create' printed no token, but: {made.out}")
        return Person(name, found.group())

    def _agree_on(self, reference: str, reason: str) -> None:
        """Ana asks, Ben agrees."""
        self.shell.type(self.ana, f"modelkeep request {reference} --to production -m '{reason}'", quiet=True)
        self.shell.type(self.ben, f"modelkeep review {self._open_request()} --approve", quiet=True)

    def _open_request(self) -> str:
        return next(iter(self.registry.list_requests(model="flights", state="open"))).id

    def _stage(self) -> str | None:
        try:
            return self.registry.get_version("flights#production").semver
        except errors.StageEmpty:
            return None

    def _rollout(self) -> Rollout:
        return next(iter(self.registry.list_rollouts(endpoint="flights", limit=1)))

    def _answered_by(self) -> str | None:
        """The version that answers one question now."""
        with self.rows.open() as rows:
            question = json.loads(next(rows))
        body = json.dumps({"inputs": [question["inputs"]]}).encode()
        asked = Request(self.predict, body, {"Content-Type": "application/json", "x-user-id": "ops"})
        with open_url(asked) as answer:
            return str(answer.headers["X-Modelkeep-Version"])

    def _let_traffic_run(self, seconds: float) -> None:
        """Wait, and for a summary that was written since."""
        time.sleep(seconds + 0.6)

    def _finished(self, rollout_id: str) -> bool:
        return self.registry.get_rollout(rollout_id).state.finished

    def _watch(self) -> Rollout:
        return watch(self.story, self.registry, self._rollout().id)


def open_url(asked: Request | str) -> Any:
    """Ask a server of this machine, whatever proxy the environment names."""
    return build_opener(ProxyHandler({})).open(asked, timeout=10)


def _flip(path: Path, offset: int) -> None:
    """Turn one bit of a byte round; a second time it is as before."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


NEXT = """
What to try next:
  KEEP=1 make demo                 the same, and it stays up for you to look around
  python examples/quickstart.py    the same words from Python, against your own 'modelkeep up'
  docs/tutorial/first-model.md     the same by hand, one command at a time
  modelkeep --help                 everything else"""


def kept(demo: Demo) -> str:
    """How to use and how to stop what was left running."""
    return f"""
It is still up. In a shell, as Ben:
  export MODELKEEP_URL={demo.url} MODELKEEP_TOKEN={demo.ben.token} PATH={PROGRAMS}:$PATH
  modelkeep history flights
To have callers again:
  cd {demo.rows.parent}
  python examples/traffic.py --url {demo.predict} --rows {demo.rows.name} --summary seen.json
To stop it, and to remove its folder:
  {demo.premises.how_to_stop}"""


def main() -> int:
    """Tell the story. Returns the exit code: 0 when everything was as it says."""
    story = Story()
    story.title("Modelkeep: one model's whole life", ["Every line with a tick is checked as it is told."])
    premises = Premises(keep=bool(os.environ.get("KEEP")))
    try:
        with polite_signals(), premises:
            demo = Demo(story, premises)
            demo.tell()
        if premises.keep:
            story.lines(kept(demo))
        else:
            gone = not premises.stubborn and not premises.folder.exists()
            story.claim("all it had started has ended, and its folder is gone", gone, premises.stubborn)
        story.lines(f"\n{story.claims} claims checked in {story.seconds:.0f} s.\n{NEXT}")
    except KeyboardInterrupt:
        story.failed("it was interrupted; all it had started has been ended.")
        return 130
    except (Broken, errors.ModelkeepError) as problem:
        story.failed(str(problem))
        story.lines(premises.last_words)
        if premises.keep:
            story.lines(f"\nTo stop what is still up, and to remove its folder:\n  {premises.how_to_stop}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
