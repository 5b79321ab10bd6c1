"""How answers of the catalog read: one function per answer, each returning what draws it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from modelkeep.cli.plans import summary
from modelkeep.cli.show import Screen, Text, mapping, moment, number, short, size

if TYPE_CHECKING:
    from modelkeep.client.answers import Pulled
    from modelkeep.core.answers import AliasMove, Preview, Registration, VerifyReport
    from modelkeep.core.catalog import FileEntry, Metric, ModelVersion, RegisteredModel
    from modelkeep.core.compare import Best, Comparison, MetricCell, VersionDiff
    from modelkeep.core.signature import Signature

View = Callable[[Screen], None]
INGREDIENT_SHOWN = 28
"""Characters of a commit, or of the digest of data or environment, in a comparison; all are in `show`."""
METRICS_SHOWN = 3
"""Metrics of a version in a list; all are in `show`."""


def stage(name: str, tombstone: str | None = None, yanked: str | None = None) -> str:
    """A stage as a cell, and whether the version is withdrawn."""
    if tombstone is not None:
        return Text(f"{name} (taken back)", "bad")
    if yanked is not None:
        return Text(f"{name} (yanked)", "warn")
    return Text(name, "good") if name == "production" else Text(name, "dim") if name == "none" else name


def models(items: Sequence["RegisteredModel"]) -> View:
    """A list of models."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("model", "latest", "in stages", "versions", "owner", "changed", "description"),
            (
                (m.name, m.latest, _occupants(m), m.versions, m.owner, moment(m.updated_at), m.description)
                for m in items
            ),
            right=(3,),
        )

    return draw


def _occupants(model: "RegisteredModel") -> str:
    return ", ".join(f"{name} #{held}" for name, held in model.occupants.items())


def model(found: "RegisteredModel") -> View:
    """One model."""

    def draw(screen: Screen) -> None:
        screen.facts(
            (
                ("model", Text(found.name, "strong")),
                ("description", found.description),
                ("owner", found.owner),
                ("versions", f"{found.versions}" + (f", latest {found.latest}" if found.latest else "")),
                ("in stages", _occupants(found)),
                ("aliases", [_alias(a) for a in found.aliases] or None),
                ("tags", mapping(found.tags) or None),
                ("stages", " · ".join(s.name for s in found.stages.stages)),
                ("created", f"{moment(found.created_at)} by {found.created_by}"),
            )
        )

    return draw


def _alias(alias: Any) -> str:
    return f"@{alias.alias} -> #{alias.number}{' (protected)' if alias.protected else ''}"


def aliases(found: "RegisteredModel") -> View:
    """The aliases of a model."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("alias", "version", "protected", "since", "by"),
            (
                (f"{found.name}@{a.alias}", f"#{a.number}", a.protected, moment(a.updated_at), a.updated_by)
                for a in found.aliases
            ),
        )

    return draw


def alias_set(done: "AliasMove", name: str) -> View:
    """What setting an alias came to."""

    def draw(screen: Screen) -> None:
        aliases(done)(screen)
        if done.kind.value == "rollout":
            screen.line(
                f"The rollout {done.rollout} has begun;", Text(name, "strong"), "moves when it succeeds."
            )
            if done.plan is not None:
                screen.line(f"  {summary(done.plan)}")
            screen.line(Text(f"  next: modelkeep rollout status {done.endpoint} --watch", "dim"))

    return draw


def tags(name: str, held: dict[str, str]) -> View:
    """The tags of a model or version."""

    def draw(screen: Screen) -> None:
        screen.facts((("of", name), ("tags", mapping(held) or "none")))

    return draw


def versions(items: Sequence["ModelVersion"]) -> View:
    """A list of versions."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("version", "number", "stage", "aliases", "metrics", "size", "registered", "by"),
            (
                (
                    v.reference,
                    f"#{v.number}",
                    stage(v.stage, v.tombstone, v.yanked),
                    ", ".join(f"@{a}" for a in v.aliases),
                    _few(v.metrics),
                    size(v.size_bytes),
                    moment(v.created_at),
                    v.created_by,
                )
                for v in items
            ),
            right=(1, 5),
        )
        for v in items:
            if v.withdrawn is not None:
                screen.line(Text(f"{v.reference}: {v.withdrawn}", "dim"))

    return draw


def _few(metrics: Sequence["Metric"]) -> str:
    whole = [m for m in metrics if m.slice is None]
    shown = ", ".join(f"{m.label} {number(m.value)}" for m in whole[:METRICS_SHOWN])
    return shown + (f", +{len(whole) - METRICS_SHOWN}" if len(whole) > METRICS_SHOWN else "")


def version(found: "ModelVersion") -> View:
    """One version, whole."""

    def draw(screen: Screen) -> None:
        from modelkeep.core.provenance import described

        screen.facts(
            (
                ("version", Text(found.reference, "strong")),
                ("number", f"#{found.number}"),
                ("stage", stage(found.stage)),
                ("taken back", Text(found.tombstone, "bad") if found.tombstone else None),
                ("yanked", Text(found.yanked, "warn") if found.yanked else None),
                ("aliases", ", ".join(f"@{a}" for a in found.aliases)),
                ("description", found.description),
                ("digest", found.digest),
                ("size", size(found.size_bytes)),
                ("bump", found.bump if found.bump != "none" else None),
                ("because", list(found.bump_reasons) or None),
                ("parent", f"#{found.parent}" if found.parent else None),
                ("registered", f"{moment(found.created_at)} by {found.created_by}"),
                ("tags", mapping(found.tags) or None),
                ("params", mapping(found.params) or None),
                ("made of", mapping(described(found.provenance)) or None),
                ("identity", _identity(found)),
            )
        )
        if found.metrics:
            screen.blank()
            screen.table(
                ("metric", "value", "unit", "better", "dataset"),
                ((m.label, m.value, m.unit, m.better.value, m.dataset) for m in found.metrics),
                right=(1,),
            )
        if found.signature is not None:
            screen.blank()
            _signature(screen, found.signature)
        screen.blank()
        files(found.files)(screen)

    return draw


def _identity(found: "ModelVersion") -> str | None:
    if found.identity is None:
        return None
    if found.identity.whole:
        return found.identity.digest
    return f"partial (not known: {', '.join(found.identity.missing)})"


def yanked(found: "ModelVersion") -> View:
    """What a yank, or its undoing, came to."""

    def draw(screen: Screen) -> None:
        name = Text(found.reference, "strong")
        if found.yanked is None:
            screen.line(name, "may be chosen again.")
        else:
            screen.line(name, f"is yanked ({found.yanked}); who names it exactly still gets it.")

    return draw


def metadata(found: "ModelVersion") -> View:
    """The metadata as the YAML that it can be registered with again."""

    def draw(screen: Screen) -> None:
        from modelkeep.core import metadata as documents
        from modelkeep.core.stated_provenance import with_ingredients

        screen.raw(documents.write_metadata(with_ingredients(found.metadata, found.provenance)))

    return draw


def _signature(screen: Screen, signature: "Signature") -> None:
    rows = [
        (side, f.name, f.type.value, "" if f.required else "optional", _bounds(f))
        for side, fields in (("input", signature.inputs), ("output", signature.outputs))
        for f in fields
    ]
    screen.table(("side", "field", "type", "", "values"), rows)


def _bounds(field: Any) -> str:
    words = []
    if field.minimum is not None or field.maximum is not None:
        low = "" if field.minimum is None else f"{field.minimum:g}"
        high = "" if field.maximum is None else f"{field.maximum:g}"
        words.append(f"{low} .. {high}".strip())
    if field.categories:
        words.append("one of " + ", ".join(str(c) for c in field.categories))
    if field.shape:
        words.append("shape " + " x ".join(str(axis) for axis in field.shape))
    if field.meaning:
        words.append(field.meaning)
    return "; ".join(words)


def files(entries: Iterable["FileEntry"]) -> View:
    """The files of a version."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("file", "size", "kind", "digest"),
            (
                (entry.path, size(entry.size_bytes), entry.media_type, short(entry.digest))
                for entry in entries
            ),
            right=(1,),
        )

    return draw


def registration(made: "Registration") -> View:
    """What a registration came to, and what to do next."""

    def draw(screen: Screen) -> None:
        found = made.version
        if not made.created:
            screen.line(
                Text(found.reference, "strong"),
                "is this already: the same bytes, nothing was registered twice.",
            )
            if found.withdrawn is not None:
                screen.line(Text(f"  mind that {found.withdrawn}", "warn"))
            return
        screen.line(
            "Registered", Text(found.reference, "strong"), f"(#{found.number}, {size(found.size_bytes)})"
        )
        for reason in made.reasons or found.bump_reasons:
            screen.line(f"  {reason}")
        _same(screen, made.same_identity)
        screen.line(Text(f"  next: modelkeep gate {found.reference} --to production", "dim"))

    return draw


def _same(screen: Screen, references: Sequence[str]) -> None:
    """Which versions were made of the same."""
    if references:
        same = ", ".join(references)
        screen.line(Text(f"  made of the same code, data, parameters and environment as {same}", "warn"))


PATHS_SHOWN = 10
"""Files to be sent that a preview lists; a folder may have thousands."""


def preview(foreseen: "Preview") -> View:
    """What registering would come to."""

    def draw(screen: Screen) -> None:
        name = Text(foreseen.version, "strong")
        if not foreseen.created:
            screen.line(name, "is this already; nothing would be registered.")
        else:
            first = "with a new model" if foreseen.new_model else None
            against = f"against #{foreseen.parent}" if foreseen.parent is not None else None
            about = ", ".join(word for word in (f"a {foreseen.bump} version", against, first) if word)
            screen.line("It would become", name, f"({about})")
        for reason in foreseen.reasons:
            screen.line(f"  {reason}")
        _same(screen, foreseen.same_identity)
        if not foreseen.to_send:
            screen.line(
                f"  {foreseen.files} files, {size(foreseen.size_bytes)}; all bytes are stored already"
            )
            return
        screen.line(
            f"  {foreseen.files} files, {size(foreseen.size_bytes)}; to send {size(foreseen.to_send_bytes)}:"
        )
        for path in foreseen.to_send[:PATHS_SHOWN]:
            screen.line(f"    {path}")
        if len(foreseen.to_send) > PATHS_SHOWN:
            screen.line(Text("    and more", "dim"))

    return draw


def pulled(brought: "Pulled") -> View:
    """What a pull brought."""

    def draw(screen: Screen) -> None:
        found = brought.version
        there = f", {brought.already_there} already there" if brought.already_there else ""
        screen.line(
            Text(found.reference, "strong"),
            f"is in {brought.folder}: {brought.fetched} files fetched{there}, "
            f"{size(found.size_bytes)}, all verified.",
        )
        if found.withdrawn is not None:
            screen.line(Text(f"  mind that {found.withdrawn}", "warn"))

    return draw


# ------------------------------------------------------------------------------------------------ against
# each other


def comparison(found: "Comparison") -> View:
    """Versions side by side: one row per version, the best of each metric marked."""

    def draw(screen: Screen) -> None:
        head = ["version", "stage", *(m.name for m in found.metrics), *(p.name for p in found.params)]
        head += [row.name for row in found.ingredients]
        rows = []
        for place, v in enumerate(found.versions):
            cells: list[object] = [v.semver, stage(v.stage, v.tombstone, v.yanked)]
            cells += [_measured(m.cells[place], v.number in m.best) for m in found.metrics]
            cells += [p.values[place] for p in found.params]
            cells += [_ingredient(row.values[place]) for row in found.ingredients]
            rows.append(cells)
        screen.table(head, rows, right=range(2, 2 + len(found.metrics)))
        if found.metrics:
            screen.line(
                Text("* best of its metric; in parentheses the difference to the version before", "dim")
            )
        if found.left_out:
            screen.line(Text(f"{found.left_out} lower versions are left out; name those you want", "dim"))

    return draw


def _ingredient(text: str | None) -> str | None:
    """A commit or a digest as far as a person compares it."""
    return text if text is None or len(text) <= INGREDIENT_SHOWN else f"{text[:INGREDIENT_SHOWN]}..."


_TRENDS = {"better": "good", "worse": "bad", "same": "dim"}


def _measured(cell: "MetricCell", is_best: bool) -> str:
    if cell.value is None:
        return Text("-", "dim")
    delta = f" ({cell.delta:+.4g})" if cell.delta else ""
    text = f"{'*' if is_best else ''}{number(cell.value)}{delta}"
    return Text(text, _TRENDS.get(cell.trend or "", "")) if cell.trend else text


def best(found: "Best") -> View:
    """The best version, the ranking below it, and what was left out."""

    def draw(screen: Screen) -> None:
        screen.line(
            Text(found.best.reference, "strong"),
            f"has the best {found.label}: {number(found.value)} ({found.direction.value} is better)",
        )
        for reason in found.reasons:
            screen.line(f"  {reason}")
        if len(found.ranking) > 1:
            screen.blank()
            screen.table(
                ("rank", "version", "stage", found.label),
                ((r.rank, r.reference, stage(r.stage), r.value) for r in found.ranking),
                right=(0, 3),
            )
        for skipped in found.skipped:
            screen.line(Text(f"skipped {skipped.reference}: {skipped.reason}", "dim"))

    return draw


def difference(found: "VersionDiff") -> View:
    """What changed, part by part; what did not change is not mentioned."""

    def draw(screen: Screen) -> None:
        screen.line(Text(found.a.reference, "strong"), "->", Text(found.b.reference, "strong"))
        if found.same_content:
            screen.line("The bytes are the same.")
        if found.same_identity:
            screen.line("They were made of the same code, data, parameters and environment.")
        screen.facts(
            (
                ("bump", found.bump.value),
                ("because", list(found.reasons) or None),
                ("not known", ", ".join(found.unknown)),
            )
        )
        _part(
            screen,
            ("metric", "before", "after", "difference"),
            [
                (
                    m.name,
                    m.before,
                    m.after,
                    Text(f"{m.delta:+.4g} {m.trend}", _TRENDS[m.trend])
                    if m.trend and m.delta is not None
                    else "",
                )
                for m in found.metrics
            ],
        )
        _part(
            screen,
            ("file", "before", "after"),
            [
                (
                    f.path,
                    size(f.before.size_bytes) if f.before else "",
                    size(f.after.size_bytes) if f.after else "gone",
                )
                for f in found.files
            ],
        )
        _part(
            screen,
            ("signature", "change"),
            [(f"{c.side.value} {c.field}", c.sentence) for c in found.signature],
        )
        _part(screen, ("param", "before", "after"), [(p.name, p.before, p.after) for p in found.params])
        _part(screen, ("made of", "before", "after"), [(p.name, p.before, p.after) for p in found.provenance])
        _part(screen, ("metadata", "before", "after"), [(p.name, p.before, p.after) for p in found.metadata])
        if found.left_out:
            screen.line(Text(f"{found.left_out} more changes are left out here", "dim"))

    return draw


def _part(screen: Screen, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        screen.blank()
        screen.table(head, rows)


# ---------------------------------------------------------------------------------------------------------
# integrity


def verification(report: "VerifyReport") -> View:
    """What hashing a version's bytes again has shown."""

    def draw(screen: Screen) -> None:
        verdict = Text("intact:", "good") if report.ok else Text("DAMAGED:", "bad")
        screen.line(
            verdict, f"{report.version}, {report.files} files, {size(report.size_bytes)} hashed again"
        )
        for problem in report.problems:
            screen.line(Text(f"  {problem.path or 'the list of files'}: {problem.problem}", "bad"))

    return draw
