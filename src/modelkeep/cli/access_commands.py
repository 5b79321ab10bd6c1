"""Commands around people and records: who one is, users, roles, tokens, and the audit log."""

import sys

import click

from modelkeep.cli import access_views as views
from modelkeep.cli.session import Session, limit, verb, yes

DAY_S = 86_400.0


@verb()
def whoami(session: Session) -> None:
    """Show who the server takes you for, and what you may do."""
    found = session.client.whoami()
    session.answer(found, [found.actor.name], views.whoami(found, session.settings.url))


# ------------------------------------------------------------------------------------------------------------
# - people


@click.group()
def user() -> None:
    """Add, list and shut out people and programs."""


@verb(user, "create")
@click.argument("name")
@click.option("--service", is_flag=True, help="It is a program.")
def user_create(session: Session, name: str, service: bool) -> None:
    """Add a person or a program; give them a role with 'modelkeep grant add'."""
    made = session.client.create_principal(name, kind="service" if service else "user")
    session.answer(made, [made.name], views.principal(made))


@verb(user, "ls")
@limit
def user_ls(session: Session, limit: int) -> None:
    """List people and programs."""
    found = session.client.list_principals(limit=limit).whole()
    session.answer(found, (p.name for p in found.items), views.principals(found.items))


@verb(user, "disable")
@click.argument("name")
@yes
def user_disable(session: Session, name: str, yes: bool) -> None:
    """Shut a person or program out; all their tokens stop working."""
    session.confirm(f"the access of {name}", name, yes)
    done = session.client.disable_principal(name)
    session.answer(done, [done.name], lambda screen: screen.line(f"{done.name} is shut out."))


@click.group()
def grant() -> None:
    """Give and take roles."""


@verb(grant, "add")
@click.argument("principal", metavar="NAME")
@click.argument(
    "role",
    type=click.Choice(["viewer", "contributor", "maintainer", "approver", "admin", "auditor", "gateway"]),
)
@click.option("--on", "scope", metavar="SCOPE", help="PROJECT/MODEL, or PROJECT/; everywhere when left out.")
@click.option("--deny", is_flag=True, help="Deny the role's rights instead; a denial wins.")
def grant_add(session: Session, principal: str, role: str, scope: str | None, deny: bool) -> None:
    """Give a person or program a role on a model, a project, or everywhere."""
    project, _, model = (scope or "").partition("/")
    made = session.client.add_grant(
        principal, role, project=project or None, model=model or None, effect="deny" if deny else "allow"
    )
    session.answer(made, [made.id], views.grants((made,)))


@verb(grant, "rm")
@click.argument("id")
def grant_rm(session: Session, id: str) -> None:  # noqa: A002  (the word that people know it by)
    """Take a grant away by its id."""
    done = session.client.remove_grant(id)
    session.answer(done, [id], lambda screen: screen.line(f"Removed {id}."))


@verb(grant, "ls")
@limit
def grant_ls(session: Session, limit: int) -> None:
    """List who holds which role where."""
    found = session.client.list_grants(limit=limit).whole()
    session.answer(found, (g.id for g in found.items), views.grants(found.items))


@click.group()
def token() -> None:
    """Make, list and revoke tokens."""


@verb(token, "create")
@click.option("--label", default="command line", show_default=True, metavar="TEXT", help="What it is for.")
@click.option("--for", "principal", metavar="NAME", help="Whose it is; yours when left out.")
@click.option(
    "--expires",
    "days",
    type=click.FloatRange(0, 366, min_open=True),
    metavar="DAYS",
    help="90 when left out.",
)
@click.option(
    "--verb", "verbs", multiple=True, metavar="VERB", help="Narrow it to these, such as read and pull."
)
@click.option("--project", metavar="NAME", help="Narrow it to a project.")
def token_create(
    session: Session,
    label: str,
    principal: str | None,
    days: float | None,
    verbs: tuple[str, ...],
    project: str | None,
) -> None:
    """Make a token. It is printed on standard output, once."""
    from modelkeep.core.access import Verb

    unknown = [word for word in verbs if word not in set(Verb)]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(Verb)}", param_hint="--verb")
    made = session.client.create_token(
        label,
        principal=principal,
        expires_s=None if days is None else days * DAY_S,
        verbs=verbs or None,
        project=project,
    )
    session.answer(made, [made.secret], views.new_token(made))
    session.say(
        f"This is the only time it is shown. It expires {made.info.expires_at:%Y-%m-%d}; id {made.info.id}."
    )


@verb(token, "ls")
@limit
def token_ls(session: Session, limit: int) -> None:
    """List tokens, without their secrets."""
    found = session.client.list_tokens(limit=limit).whole()
    session.answer(found, (t.id for t in found.items), views.tokens(found.items))


@verb(token, "revoke")
@click.argument("id")
def token_revoke(session: Session, id: str) -> None:  # noqa: A002  (the word that people know it by)
    """End a token by its id."""
    done = session.client.revoke_token(id)
    session.answer(done, [done.id], lambda screen: screen.line(f"The token {done.id} is revoked."))


# ------------------------------------------------------------------------------------------------------------
# -- audit


@click.group()
def audit() -> None:
    """Read, verify and export the audit log."""


@verb(audit, "log")
@click.argument("model", required=False)
@click.option("--kind", metavar="KIND", help="Only events of this kind, such as stage.moved.")
@click.option("--subject", metavar="TEXT", help="Only events of this subject.")
@click.option("--after", type=click.IntRange(0), metavar="N", help="Those after event N, oldest first.")
@limit
def audit_log(
    session: Session, model: str | None, kind: str | None, subject: str | None, after: int | None, limit: int
) -> None:
    """Read the log of MODEL, or all of it; the newest first unless --after says where to begin.

    A name with a question mark was asserted: nobody checked it.
    """
    found = session.client.list_events(
        after=after or 0,
        limit=min(limit, 1_000),
        model=model,
        kind=kind,
        subject=subject,
        newest=after is None,
    )
    session.answer(found, (str(e.event.sequence) for e in found.items), views.events(found))
    if found.next_after is not None and after is not None:
        session.say(f"There is more; go on with --after {found.next_after}.")


@verb(audit, "verify")
@click.option(
    "--head", metavar="SEQ:HASH", help="A head that was printed before, which the log must still hold."
)
def audit_verify(session: Session, head: str | None) -> None:
    """Walk the whole log and recompute every link of its chain. Keep the head it prints somewhere else: given
    back with --head, it shows events that were cut off or rewritten since."""
    found = session.client.verify_audit(head)
    session.answer(found, [found.head], views.verification(found))


@verb(audit, "export")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    show_default=True,
    help="The form.",
)
@click.option("--after", type=click.IntRange(0), default=0, metavar="N", help="Only those after event N.")
@click.option("--output", "-o", metavar="FILE", help="Where to; standard output when left out.")
def audit_export(session: Session, form: str, after: int, output: str | None) -> None:
    """Write the log as lines: JSON with every leaf and link, or CSV for people."""
    pieces = session.client.export_audit(form=form, after=after)
    if output is None or output == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    try:
        with open(output, "wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError as problem:
        raise click.BadParameter(f"{output}: {problem.strerror}", param_hint="--output") from problem
