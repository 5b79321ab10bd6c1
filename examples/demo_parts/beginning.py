"""The demo's first act: models are trained and registered, the first one goes live, and another one is asked
for. How traffic moves is the next act's.
"""

import time

from demo_parts import training
from demo_parts.house import TOKEN, House
from demo_parts.premises import Traffic
from demo_parts.shell import Person
from modelkeep import Client

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


def train(house: House) -> None:
    """Four versions that people would make."""
    tell = house.story
    tell.chapter(
        "Training",
        "Will this flight arrive more than 30 minutes late? Ana has every flight that left New York from "
        "January to mid-March 2013, and tries three ways to say so an hour before departure. A fourth is "
        "made in a hurry: one week of data, rare destinations dropped as noise, tested on the same week.",
    )
    for variants in training.TERMINALS:
        tell.typed("ana", training.command(*variants))
    tell.printed(training.train(house.premises.folder, house.rows))
    models = sorted(path.parent.name for path in house.premises.folder.glob("models/*/model.*"))
    tell.claim("four models and their metadata are there", len(models) == 4, models)


def open_house(house: House) -> None:
    """A server with users and a policy."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "A registry, a gateway, and who may do what",
        "One command starts both. Nobody gets in without a token: Ana may register and ask, and review "
        "what others ask for; Ben looks after the models. What has to hold before production is a file.",
    )
    line = f"modelkeep up --data house --port {house.port} --gateway-port {house.gateway_port} --auth token"
    tell.typed("ops", line)
    began = time.monotonic()
    house.up = house.premises.start("up", line.split())
    house.up.until(lambda: TOKEN.search(house.up.log.read_text()) is not None, "it was ready")
    took = time.monotonic() - began
    admin = house.first_token()
    shell.url = house.url
    tell.claim(f"ready {took:.1f} s after Enter", took < 20, took)
    house.admin = Person("admin", admin)
    house.ana, house.ben = house.person("ana"), house.person("ben")
    for line in (
        "modelkeep grant add ana contributor --on default/",
        "modelkeep grant add ana approver --on default/",
        "modelkeep grant add ben maintainer --on default/",
    ):
        shell.type(house.admin, line, quiet=True)
    house.registry = Client(house.url, house.ben.token)
    house.written("policy.yaml", POLICY)


def register(house: House) -> None:
    """Three versions, their numbers, and the best of them."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "Registering and comparing",
        "Each folder becomes a version that never changes again. Its number is worked out from what "
        "changed, and the reasons are kept.",
    )
    for variant in ("baseline", "boosted", "wide"):
        shell.type(house.ana, f"modelkeep register models/{variant} --name flights", lines_max=4)
    numbers = [version.semver for version in house.registry.list_versions("flights")]
    tell.claim(
        "another kind of model is a major step, new weights behind the same signature a minor one: "
        "1.0.0, 2.0.0, 2.1.0",
        sorted(numbers) == ["1.0.0", "2.0.0", "2.1.0"],
        numbers,
    )
    again = shell.type(house.ana, "modelkeep register models/wide --name flights")
    tell.claim("equal bytes are not registered twice", "2.1.0" in again.out, again.out)
    shell.type(house.ana, "modelkeep compare flights --metrics auc,logloss,brier")
    shell.type(house.ana, "modelkeep best flights -m auc")
    best = house.registry.best("flights", "auc").best
    tell.claim("the best is 2.1.0, which reads the weather", best.semver == "2.1.0", best.semver)
    shell.type(house.ben, "modelkeep policy set flights --file policy.yaml", lines_max=2)


def first_version(house: House) -> None:
    """Something has to be live before there can be a canary."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "The first version goes live",
        "An endpoint follows the stage 'production'. Whatever is promoted from now on comes in by "
        "canary: to 10 %, 50 %, 100 % of the callers, at least 8 seconds each.",
    )
    house.agree_on("flights:1.0.0", "the first one")
    shell.type(
        house.ben,
        "modelkeep endpoint create flights --model flights --follows production --key-header x-user-id "
        "--slow-ms 1000 --step 10%:8 --step 50%:8 --step 100%:8",
    )
    shell.type(house.ben, "modelkeep promote flights:1.0.0 --to production -m 'the first one'")
    rollout = house.rollout()
    house.up.until(lambda: house.finished(rollout.id), "the first version was served")
    stage = house.stage()
    tell.claim("loaded, served, and so in production: 1.0.0", stage == "1.0.0", house.rollout().outcome)
    row = '{"inputs": [...]}'
    tell.typed("app", f"curl {house.address('flights')} -H 'x-user-id: N566UW/14C' -d '{row}'")
    house.traffic = Traffic(house.premises, "flights", house.address("flights"), house.rows, RATE)
    house.let_traffic_run(2.0)
    seen = house.traffic.seen()
    tell.claim(
        f"another process now asks {RATE} times a second, with real flights from April on; so far "
        f"{seen['answered']:,} answers to {seen['callers']:,} callers, all by 1.0.0, none failed",
        seen["failed"] == 0 and set(seen["versions"]) == {"flights:1.0.0"},
        seen,
    )


def ask(house: House) -> None:
    """Four eyes."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "Asking for production",
        "Ana asks, and cannot also agree: the gates look at stored facts, and one other person at Ana's.",
    )
    shell.type(house.ana, "modelkeep request flights:2.1.0 --to production -m 'reads the weather'")
    request = house.open_request()
    refused = shell.type(house.ana, f"modelkeep review {request} --approve", code=3)
    tell.claim("nobody approves their own request", house.open_request() == request, refused.err)
    shell.type(house.ben, f"modelkeep review {request} --approve -m 'better at all three'", lines_max=3)
    approved = house.registry.get_request(request)
    tell.claim(
        "the approval is bound to these bytes, this evidence and this policy",
        [review.seen == approved.seen for review in approved.reviews] == [True],
        approved.reviews,
    )
