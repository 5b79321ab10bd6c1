"""Commands of the catalog: registering, looking versions up, labelling them, and setting them against each
other.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from modelkeep.cli import catalog_views
from modelkeep.cli.plans import plan_options, stated
from modelkeep.cli.session import Session, limit, pairs, reason, verb, yes
from modelkeep.cli.show import Bars

if TYPE_CHECKING:
    from modelkeep.client.files import LocalFile

FILTER_HELP = 'Such as: metrics.accuracy > 0.9 and tags.team = "risk".'


# ------------------------------------------------------------------------------------------------------------
# - look


@verb()
@click.argument("model", required=False)
@click.option("--filter", "filter_text", metavar="FILTER", help=FILTER_HELP)
@click.option("--order", metavar="FIELDS", help="Such as: created_at desc.")
@click.option("--project", metavar="NAME", help="Only this project.")
@limit
def ls(
    session: Session,
    model: str | None,
    filter_text: str | None,
    order: str | None,
    project: str | None,
    limit: int,
) -> None:
    """List models, or the versions of MODEL."""
    client = session.client
    if model is not None:
        if filter_text or order or project:
            raise click.UsageError(
                "--filter, --order and --project are for lists of models; use 'modelkeep search'."
            )
        versions = client.list_versions(model, limit=limit).whole()
        session.answer(
            versions, (v.reference for v in versions.items), catalog_views.versions(versions.items)
        )
        _more(session, versions.next_page_token)
        return
    models = client.list_models(filter=filter_text, order=order, project=project, limit=limit).whole()
    session.answer(models, (str(m.name) for m in models.items), catalog_views.models(models.items))
    _more(session, models.next_page_token)
    if not models.items and not filter_text:
        session.say("No model yet; begin with 'modelkeep register FILE --name NAME'.")


def _more(session: Session, token: str | None) -> None:
    if token is not None:
        session.say("There is more; ask for it with --limit.")


@verb()
@click.argument("ref")
@click.option("--metadata", is_flag=True, help="Print the version's metadata as YAML.")
def show(session: Session, ref: str, metadata: bool) -> None:
    """Show a model, or the version that REF names (churn:2.1.0, churn@champion, churn#production)."""
    from modelkeep.core import values

    if metadata:
        found = session.client.get_version(ref)
        session.answer(found.metadata, [found.reference], catalog_views.metadata(found))
        return

    parsed = values.parse_ref(ref)
    if parsed.selector is None and parsed.at is None:
        model = session.client.get_model(ref)
        session.answer(model, [str(model.name)], catalog_views.model(model))
    else:
        version = session.client.get_version(ref)
        session.answer(version, [version.reference], catalog_views.version(version))


@verb()
@click.argument("filter_text", metavar="FILTER", required=False)
@click.option("--order", metavar="FIELDS", help="Such as: metrics.accuracy desc.")
@click.option("--project", metavar="NAME", help="Only this project.")
@limit
def search(
    session: Session, filter_text: str | None, order: str | None, project: str | None, limit: int
) -> None:
    """Find versions that FILTER selects, such as: metrics.accuracy > 0.9 and tags.team = "risk"."""
    found = session.client.search_versions(filter_text, order=order, project=project, limit=limit).whole()
    session.answer(found, (v.reference for v in found.items), catalog_views.versions(found.items))
    _more(session, found.next_page_token)
    if not found.items:
        session.say("Nothing found.")


@verb()
@click.argument("model")
@click.argument("refs", nargs=-1)
@click.option("--metrics", metavar="NAMES", help="Only these, comma-separated and in this order.")
def compare(session: Session, model: str, refs: tuple[str, ...], metrics: str | None) -> None:
    """Set versions of MODEL side by side: all, or those named (1.0.0, @champion, churn:^2)."""
    named = [within(model, ref) for ref in refs] or None
    names = [name.strip() for name in metrics.split(",") if name.strip()] if metrics else None
    found = session.client.comparison(model, metrics=names, refs=named)
    session.answer(found, (v.reference for v in found.versions), catalog_views.comparison(found))


def within(model: str, text: str) -> str:
    """A version named inside a model (`1.0.0`, `#7`, `^2`, `@champion`) as a whole reference."""
    if text[:1] == "@":
        return f"{model}{text}"
    return (
        f"{model}:{text}" if text[:1].isdigit() or text[:1] in ("#", "^", "~", "<", ">", "=", "*") else text
    )


@verb()
@click.argument("a")
@click.argument("b")
def diff(session: Session, a: str, b: str) -> None:
    """Show what changed from version A to version B."""
    found = session.client.diff(a, b)
    session.answer(found, (found.a.reference, found.b.reference), catalog_views.difference(found))


@verb()
@click.argument("model")
@click.option(
    "-m", "--metric", required=True, metavar="NAME", help="The metric to rank by, such as auc or auc@test."
)
@click.option("--direction", type=click.Choice(["higher", "lower"]), help="What is better, when not stated.")
@click.option("--split", metavar="NAME", help="The metric of this split.")
@click.option("--filter", "filter_text", metavar="FILTER", help=FILTER_HELP)
def best(
    session: Session,
    model: str,
    metric: str,
    direction: str | None,
    split: str | None,
    filter_text: str | None,
) -> None:
    """Find the best version of MODEL by a metric."""
    found = session.client.best(model, metric, direction=direction, filter=filter_text, split=split)
    session.answer(found, [found.best.reference], catalog_views.best(found))


# ---------------------------------------------------------------------------------------------------
# register, pull


@verb()
@click.argument("path", type=click.Path(exists=True))
@click.option("--name", required=True, metavar="MODEL", help="The model's name, or PROJECT/MODEL.")
@click.option(
    "--metadata", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Metadata in YAML."
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME=NUMBER",
    help="A measured number, such as auc=0.9 or auc@test=0.9.",
)
@click.option("--param", "params", multiple=True, metavar="NAME=VALUE", help="What it was trained with.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A label.")
@click.option("--description", default="", metavar="TEXT", help="What a reader should know.")
@click.option("--semver", metavar="VERSION", help="The version to give; inferred when left out.")
@click.option(
    "--bump", type=click.Choice(["auto", "major", "minor", "patch"]), default="auto", help="How to count on."
)
@click.option("--override-semver", is_flag=True, help="Give a lower version than inferred; -m says why.")
@click.option("-m", "--message", "reason", metavar="WHY", help="Why the lower version is right.")
@click.option("--parent", metavar="REF", help="The version it comes from; the latest when left out.")
@click.option(
    "--code-commit", metavar="COMMIT", help="The commit it was made with; its checkout's when left out."
)
@click.option(
    "--data",
    multiple=True,
    metavar="[ROLE=]FILE",
    help="What it was trained on, such as training=customers.csv.",
)
@click.option(
    "--env-lock", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Its requirements.txt."
)
@click.option("--to-onnx", is_flag=True, help="Convert to ONNX as well, when both answer alike.")
@click.option(
    "--samples",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Rows to compare on, in CSV or JSON; made up when left out.",
)
@click.option("--resume", metavar="DRAFT", help="Go on with a registration that broke off.")
@click.option("--dry-run", is_flag=True, help="Show the files, the version and why; write nothing.")
def register(
    session: Session,
    path: str,
    name: str,
    metadata: str | None,
    metrics: tuple[str, ...],
    params: tuple[str, ...],
    tags: tuple[str, ...],
    reason: str | None,
    override_semver: bool,
    to_onnx: bool,
    samples: str | None,
    resume: str | None,
    dry_run: bool,
    **stated: Any,
) -> None:
    """Register the file or folder at PATH as a new version."""
    from modelkeep.client.registration import metrics_of

    if samples and not to_onnx:
        raise click.UsageError("--samples goes with --to-onnx.")

    if override_semver != bool(reason):
        raise click.UsageError("--override-semver and -m WHY go together.")
    measured: dict[str, Any] = pairs(metrics, "metric", at_last=True)
    stated |= {
        "metadata": metadata,
        "metrics": tuple(metrics_of(measured)),
        "params": pairs(params, "param"),
        "tags": pairs(tags, "tag"),
        "override_semver": reason,
    }
    bars = Bars(shown=False if session.quiet else None)
    with ExitStack() as until_sent:
        if to_onnx:
            stated["also"] = until_sent.enter_context(_converted(session, path, metadata, samples))
        if dry_run:
            with bars:
                foreseen = session.client.preview(name, path, progress=bars, **stated)
            session.answer(foreseen, [foreseen.version], catalog_views.preview(foreseen))
            session.say("Nothing was written.")
            return
        with bars:
            made = session.client.register(name, path, progress=bars, resume=resume, **stated)
    session.answer(made, [made.version.reference], catalog_views.registration(made))


@contextmanager
def _converted(
    session: Session, path: str, metadata: str | None, samples: str | None
) -> "Iterator[tuple[LocalFile, ...]]":
    """The files of the model at a path as ONNX, while they are registered."""
    from modelkeep.conversion import to_onnx

    with to_onnx(path, document=metadata, samples=samples) as conversion:
        rows = f"{conversion.rows} {'made-up rows' if conversion.made else 'rows'}"
        session.say(f"Converted to {conversion.path}; both forms answer alike on {rows}.")
        yield conversion.files


@verb()
@click.argument("document", type=click.Choice(["metadata", "plan", "policy"]), default="metadata")
def schema(session: Session, document: str) -> None:
    """Print the JSON Schema of what people write: metadata of a version, a rollout plan, or a policy.

    An editor that knows it completes and checks a metadata.yaml, a plan or a policy while it is written; no
    server is asked. In YAML the first line names it:
    # yaml-language-server: $schema=rollout-plan.schema.json
    """
    from modelkeep.core import metadata_schema, plan_schema, policy_schema

    match document:
        case "plan":
            made = plan_schema.json_schema()
        case "policy":
            made = policy_schema.json_schema()
        case _:
            made = metadata_schema.json_schema()
    session.screen.json(made)


@verb()
@click.argument("ref")
@click.option(
    "--to", "folder", required=True, type=click.Path(file_okay=False), help="The folder to bring them to."
)
@click.option("--force", is_flag=True, help="Replace other files of the same name.")
def pull(session: Session, ref: str, folder: str, force: bool) -> None:
    """Bring the files of REF into a folder, each verified against its digest."""
    with Bars(shown=False if session.quiet else None) as bars:
        brought = session.client.pull(ref, folder, overwrite=force, progress=bars)
    session.answer(
        brought, (f"{folder}/{entry.path}" for entry in brought.version.files), catalog_views.pulled(brought)
    )


@verb()
@click.argument("ref")
def verify(session: Session, ref: str) -> int:
    """Have the server hash the stored bytes of REF again."""
    report = session.client.verify_version(ref)
    session.answer(report, (p.path or "" for p in report.problems), catalog_views.verification(report))
    return 0 if report.ok else 1


# ------------------------------------------------------------------------------------------------------------
# labels


@click.group()
def models() -> None:
    """Create, edit and delete models."""


@verb(models, "create")
@click.argument("name")
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@click.option("--owner", metavar="NAME", help="Who answers for it; you when left out.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE", help="A label.")
def models_create(
    session: Session, name: str, description: str, owner: str | None, tags: tuple[str, ...]
) -> None:
    """Register the name of a model, MODEL or PROJECT/MODEL."""
    made = session.client.create_model(name, description=description, owner=owner, tags=pairs(tags, "tag"))
    session.answer(made, [str(made.name)], catalog_views.model(made))


@verb(models, "edit")
@click.argument("name")
@click.option("--description", metavar="TEXT", help="What it is for.")
@click.option("--owner", metavar="NAME", help="Who answers for it.")
def models_edit(session: Session, name: str, description: str | None, owner: str | None) -> None:
    """Change what a model is said to be; what is left out stays."""
    if description is None and owner is None:
        raise click.UsageError("Say what to change: --description or --owner.")
    changed = session.client.change_model(name, description=description, owner=owner)
    session.answer(changed, [str(changed.name)], catalog_views.model(changed))


@verb(models, "delete")
@click.argument("name")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted.")
@yes
def models_delete(session: Session, name: str, dry_run: bool, yes: bool) -> None:
    """Delete a model with all its versions."""
    model = session.client.get_model(name)
    if dry_run:
        session.answer(model, [str(model.name)], catalog_views.model(model))
        session.say(f"{model.versions} versions would be deleted.")
        return
    session.confirm(f"the model {model.name} and its {model.versions} versions", str(model.name), yes)
    done = session.client.delete_model(name)
    session.answer(done, [str(model.name)], lambda screen: screen.line(f"Deleted {model.name}."))


@click.group()
def versions() -> None:
    """Edit and delete versions."""


@verb(versions, "edit")
@click.argument("ref")
@click.option("--description", required=True, metavar="TEXT", help="What a reader should know.")
def versions_edit(session: Session, ref: str, description: str) -> None:
    """Change the description of a version; its content never changes."""
    changed = session.client.change_version(ref, description=description)
    session.answer(changed, [changed.reference], catalog_views.version(changed))


@verb(versions, "delete")
@click.argument("ref")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted.")
@yes
def versions_delete(session: Session, ref: str, dry_run: bool, yes: bool) -> None:
    """Delete a version; its number is never used again."""
    version = session.client.get_version(ref)
    if dry_run:
        session.answer(version, [version.reference], catalog_views.version(version))
        session.say(f"{version.reference} would be deleted.")
        return
    session.confirm(f"the version {version.reference}", version.reference, yes)
    done = session.client.delete_version(f"{version.model}:#{version.number}")
    session.answer(done, [version.reference], lambda screen: screen.line(f"Deleted {version.reference}."))


@click.group()
def tag() -> None:
    """Set and remove tags."""


def _retag(session: Session, ref: str, set_tags: dict[str, str], delete_tags: tuple[str, ...]) -> None:
    from modelkeep.core import values

    client = session.client
    if values.parse_ref(ref).selector is None:
        model = client.change_model(ref, set_tags=set_tags, delete_tags=delete_tags)
        session.answer(model, [str(model.name)], catalog_views.tags(str(model.name), model.tags))
    else:
        version = client.change_version(ref, set_tags=set_tags, delete_tags=delete_tags)
        session.answer(version, [version.reference], catalog_views.tags(version.reference, version.tags))


@verb(tag, "set")
@click.argument("ref")
@click.argument("tags", nargs=-1, required=True, metavar="KEY=VALUE...")
def tag_set(session: Session, ref: str, tags: tuple[str, ...]) -> None:
    """Set tags of a model or version."""
    _retag(session, ref, pairs(tags, "tag"), ())


@verb(tag, "rm")
@click.argument("ref")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def tag_rm(session: Session, ref: str, keys: tuple[str, ...]) -> None:
    """Remove tags from a model or version."""
    _retag(session, ref, {}, keys)


@verb()
@click.argument("model")
@click.argument("name")
def rename(session: Session, model: str, name: str) -> None:
    """Give MODEL another NAME within its project. Its versions, stages, aliases, endpoints and history go
    along; who asks for the old name is told the new one, until another model takes it."""
    renamed = session.client.rename_model(model, name)
    session.answer(renamed, [str(renamed.name)], catalog_views.model(renamed))


@verb()
@click.argument("ref")
@reason
def yank(session: Session, ref: str, reason: str) -> None:
    """Have the version REF passed over by @latest, ranges and best. Whoever names it still gets it."""
    version = session.client.yank_version(ref, reason)
    session.answer(version, [version.reference], catalog_views.yanked(version))


@verb()
@click.argument("ref")
@reason
def unyank(session: Session, ref: str, reason: str) -> None:
    """Let a yanked version be chosen again."""
    version = session.client.unyank_version(ref, reason)
    session.answer(version, [version.reference], catalog_views.yanked(version))


@click.group()
def alias() -> None:
    """Point and delete aliases."""


@verb(alias, "set")
@click.argument("name", metavar="MODEL@ALIAS")
@click.argument("ref")
@click.option("--expect", metavar="NUMBER", help="Only if it points to this number now ('none': nowhere).")
@click.option("--protect/--unprotect", "protected", default=None, help="Keep its version from deletion.")
@click.option(
    "-m", "--message", "reason", metavar="WHY", help="Why, for the rollout where an endpoint follows it."
)
@plan_options
@click.option("--supersede", is_flag=True, help="End the rollout that is under way, and begin this one.")
def alias_set(
    session: Session,
    name: str,
    ref: str,
    expect: str | None,
    protected: bool | None,
    reason: str | None,
    plan_file: str | None,
    strategy: str | None,
    steps: tuple[str, ...],
    supersede: bool,
) -> None:
    """Point an alias at a version: modelkeep alias set churn@champion 2.1.0.

    Where an endpoint follows the alias, its traffic begins to move, and the alias follows when that has
    succeeded.
    """
    from msgspec import UNSET, UnsetType

    model, mark, alias_name = name.partition("@")
    if not mark or not alias_name:
        raise click.BadParameter("write MODEL@ALIAS, such as churn@champion", param_hint="MODEL@ALIAS")
    expected: int | UnsetType | None = UNSET
    if expect is not None:
        if expect != "none" and not expect.lstrip("#").isdigit():
            raise click.BadParameter("write a version's number, or none", param_hint="--expect")
        expected = None if expect == "none" else int(expect.lstrip("#"))
    changed = session.client.set_alias(
        model,
        alias_name,
        within(model, ref),
        expect=expected,
        protected=protected,
        reason=reason,
        plan=stated(plan_file, strategy, steps),
        supersede=supersede or None,
    )
    session.answer(changed, [changed.rollout or name], catalog_views.alias_set(changed, name))


@verb(alias, "rm")
@click.argument("name", metavar="MODEL@ALIAS")
def alias_rm(session: Session, name: str) -> None:
    """Delete an alias; the version stays."""
    model, mark, alias_name = name.partition("@")
    if not mark or not alias_name:
        raise click.BadParameter("write MODEL@ALIAS, such as churn@champion", param_hint="MODEL@ALIAS")
    done = session.client.delete_alias(model, alias_name)
    session.answer(done, [name], lambda screen: screen.line(f"Deleted {name}."))
