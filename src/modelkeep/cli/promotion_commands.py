"""Commands of promotion: gates, requests, reviews, moves between stages, and the time machine."""

import click

from modelkeep.cli import promotion_views as views
from modelkeep.cli.catalog_commands import within
from modelkeep.cli.plans import plan_options, stated, tested
from modelkeep.cli.session import DefaultGroup, Session, limit, pairs, read_text, reason, verb

_TO = click.option("--to", required=True, metavar="STAGE", help="The stage, such as production.")
_TICKET = click.option("--ticket", metavar="TEXT", help="Where this is tracked.")
_EXIT = {"granted": 0, "denied": 3, "awaiting_approval": 8}


@verb()
@click.argument("ref")
@_TO
@click.option("--explain", is_flag=True, help="Say of each gate what it saw and what would make it pass.")
def gate(session: Session, ref: str, to: str, explain: bool) -> int:
    """Ask whether REF may enter a stage. Exit code: 0 yes, 3 no, 8 others have to agree."""
    report = session.client.gate(ref, to)
    session.answer(report, (g.gate for g in report.gates if g.blocks), views.gate(report, explain))
    return 3 if report.obstacle else _EXIT[report.ruling]


@verb()
@click.argument("ref")
@_TO
@reason
@click.option("--request", metavar="ID", help="The request whose approvals count.")
@_TICKET
@plan_options
@click.option(
    "--beside",
    multiple=True,
    metavar="VERSION:SHARE",
    help="A further version of an A/B test, such as 2.1.0:25%.",
)
@click.option("--supersede", is_flag=True, help="End the rollout that is under way, and begin this one.")
@click.option("--dry-run", is_flag=True, help="Ask the gates and show the plan; change nothing.")
def promote(
    session: Session,
    ref: str,
    to: str,
    reason: str,
    request: str | None,
    ticket: str | None,
    plan_file: str | None,
    strategy: str | None,
    steps: tuple[str, ...],
    beside: tuple[str, ...],
    supersede: bool,
    dry_run: bool,
) -> int:
    """Move REF to a stage; where an endpoint follows it, its traffic begins to move."""
    plan = tested(stated(plan_file, strategy, steps), beside)
    if dry_run:
        report = session.client.gate(ref, to)
        if plan is not None and report.endpoint is not None:
            from msgspec.structs import replace

            report = replace(report, plan=plan, plan_from="promotion")
        session.answer(report, (g.gate for g in report.gates if g.blocks), views.gate(report, True))
        session.say("Nothing was changed.")
        return 3 if report.obstacle else _EXIT[report.ruling]
    done = session.client.promote(
        ref, to, reason, request=request, ticket=ticket, plan=plan, supersede=supersede
    )
    session.answer(done, [done.rollout or done.version.reference], views.promoted(done))
    return 0


@verb()
@click.argument("model")
@reason
@click.option(
    "--to", metavar="VERSION", help="The version to go back to; the last healthy one when left out."
)
@click.option("--stage", metavar="STAGE", help="The stage to go back in; production when nothing is said.")
@click.option("--alias", metavar="ALIAS", help="The alias to go back, which an endpoint follows.")
@click.option("--incident", metavar="TEXT", help="Where the incident is tracked.")
@click.option("--dry-run", is_flag=True, help="Show where it would go back to; change nothing.")
def rollback(
    session: Session,
    model: str,
    reason: str,
    to: str | None,
    stage: str | None,
    alias: str | None,
    incident: str | None,
    dry_run: bool,
) -> None:
    """Take MODEL back: an unfinished rollout, else to the last version that was healthy."""
    client = session.client
    target = within(model, to) if to is not None else None
    if dry_run:
        seen = client.preview_rollback(model, to=target, stage=stage, alias=alias)
        session.answer(seen, [seen.version.reference if seen.version else ""], views.would_go_back(seen))
        session.say("Nothing was changed.")
        return
    done = client.rollback(model, reason, to=target, stage=stage, alias=alias, incident=incident)
    session.answer(done, [done.version.reference if done.version else ""], views.rolled_back(done))


@verb()
@click.argument("ref")
@reason
def clear(session: Session, ref: str, reason: str) -> None:
    """Let a version that was taken back be promoted again."""
    version = session.client.clear_version(ref, reason)
    session.answer(version, [version.reference], views.cleared(version))


# -----------------------------------------------------------------------------------------------------------
# requests


@click.group(cls=DefaultGroup, default="open", no_args_is_help=True)
def request() -> None:
    """Ask others to agree to a promotion: modelkeep request REF --to STAGE -m WHY."""


@verb(request, "open")
@click.argument("ref")
@_TO
@reason
@_TICKET
def request_open(session: Session, ref: str, to: str, reason: str, ticket: str | None) -> None:
    """Open a request (the word may be left out)."""
    made = session.client.open_request(ref, to, reason, ticket=ticket)
    session.answer(made, [made.id], views.request(made))


@verb(request, "list")
@click.argument("model", required=False)
@click.option(
    "--state",
    type=click.Choice(["open", "promoted", "rejected", "withdrawn", "expired"]),
    help="Only those in this state.",
)
@limit
def request_list(session: Session, model: str | None, state: str | None, limit: int) -> None:
    """List requests, newest first."""
    found = session.client.list_requests(model=model, state=state, limit=limit).whole()
    session.answer(found, (r.id for r in found.items), views.requests(found.items))
    if not found.items:
        session.say("No request.")


@verb(request, "show")
@click.argument("id")
def request_show(session: Session, id: str) -> None:  # noqa: A002  (the word that people know it by)
    """Show a request with its gates and reviews."""
    found = session.client.get_request(id)
    session.answer(found, [found.id], views.request(found))


@verb(request, "withdraw")
@click.argument("id")
@reason
def request_withdraw(session: Session, id: str, reason: str) -> None:  # noqa: A002  (the word that people know it by)
    """Take a request back."""
    found = session.client.withdraw(id, reason)
    session.answer(found, [found.id], views.request(found))


@verb()
@click.argument("id")
@click.option("--approve", "vote", flag_value="approve", help="Agree.")
@click.option("--reject", "vote", flag_value="reject", help="Refuse; this closes the request.")
@click.option("--comment", "vote", flag_value="comment", help="Only say something.")
@click.option("-m", "--message", "comment", default="", metavar="TEXT", help="What you say.")
@click.option(
    "--check", "checks", multiple=True, metavar="ITEM=EVIDENCE", help="Vouch for an item of the checklist."
)
@click.option("--waive", multiple=True, metavar="GATE", help="Take a gate upon yourself; -m says why.")
def review(
    session: Session,
    id: str,  # noqa: A002  (the word that people know it by)
    vote: str | None,
    comment: str,
    checks: tuple[str, ...],
    waive: tuple[str, ...],
) -> None:
    """Approve, reject or comment on the request ID."""
    if vote is None:
        if not comment and not checks:
            raise click.UsageError("Say --approve, --reject or --comment.")
        vote = "comment"
    if waive and not comment:
        raise click.UsageError("A waived gate needs -m WHY.")
    found = session.client.review(id, vote, comment=comment, checks=pairs(checks, "check"), waive=waive)
    session.answer(found, [found.id], views.request(found))


# ------------------------------------------------------------------------------------------------------- time
# machine


@verb()
@click.argument("model")
@click.option("--stage", metavar="STAGE", help="Only this stage.")
@limit
def history(session: Session, model: str, stage: str | None, limit: int) -> None:
    """Show which version of MODEL was in which stage, from when to when, and why."""
    found = session.client.history(model, stage=stage, limit=limit)
    session.answer(found, (f"{found.model}:{i.semver}" for i in found.intervals), views.history(found))
    if not found.intervals:
        session.say(f"No version of {found.model} has been in a stage yet.")


@verb()
@click.argument("ref")
@click.option("--at", metavar="TIME", help="The moment, such as 2026-01-25T14:03Z; now when left out.")
def whatwas(session: Session, ref: str, at: str | None) -> None:
    """Show what was in a stage (churn#production) at a moment, who brought it there, and on what grounds."""
    found = session.client.whatwas(ref, at)
    session.answer(found, [found.version.reference], views.whatwas(found))


# -----------------------------------------------------------------------------------------------------
# policy, stages


@click.group()
def policy() -> None:
    """Show and set what a promotion asks for."""


@verb(policy, "show")
@click.argument("scope", required=False)
def policy_show(session: Session, scope: str | None) -> None:
    """Show the policy that holds for a model, a project (NAME/), or the installation."""
    found = session.client.get_policy(scope)
    session.answer(found, [found.digest], views.policy(found))


@verb(policy, "set")
@click.argument("scope", required=False)
@click.option(
    "--file", "path", required=True, metavar="FILE", help="The policy in YAML; - is standard input."
)
@click.option("--dry-run", is_flag=True, help="Only check the document.")
def policy_set(session: Session, scope: str | None, path: str, dry_run: bool) -> None:
    """Set the policy of a model, a project (NAME/), or the installation."""
    text = read_text(path)
    if dry_run:
        from modelkeep.core.policy import policy_digest, read_policy

        checked = read_policy(text)
        session.answer(checked, [policy_digest(checked)], views.policy_document(checked))
        session.say("The document is fine; nothing was changed.")
        return
    found = session.client.set_policy(scope, text)
    session.answer(found, [found.digest], views.policy(found))


@click.group()
def stages() -> None:
    """Show and set a model's stages."""


@verb(stages, "show")
@click.argument("model")
def stages_show(session: Session, model: str) -> None:
    """Show the stages of a model, who is in them, and the moves between them."""
    found = session.client.get_model(model)
    session.answer(found.stages, (s.name for s in found.stages.stages), views.stages(found))


@verb(stages, "set")
@click.argument("model")
@click.option(
    "--file", "path", required=True, metavar="FILE", help="The stage graph in YAML; - is standard input."
)
def stages_set(session: Session, model: str, path: str) -> None:
    """Give a model another stage graph."""
    from modelkeep.core import codec
    from modelkeep.core.catalog import StageGraph

    graph = codec.convert(codec.parse_yaml(read_text(path)), StageGraph)
    found = session.client.set_stages(model, graph)
    session.answer(found.stages, (s.name for s in found.stages.stages), views.stages(found))
