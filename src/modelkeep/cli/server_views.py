"""How answers about Modelkeep itself read: where it runs, what a gateway does, the doctor's checks, fsck."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelkeep.cli.catalog_views import View
from modelkeep.cli.show import Screen, Text, duration, share, size

if TYPE_CHECKING:
    from modelkeep.cli.doctor import Check
    from modelkeep.core.answers import FsckReport


def up(places: dict[str, str]) -> View:
    """Where everything is."""

    def draw(screen: Screen) -> None:
        screen.line(f"registry {places['registry']}, gateway {places['gateway']}, data {places['data']}")
        if "admin_token" in places:
            screen.line("Shown once, keep it: the token of 'admin' is")
            screen.line(Text(places["admin_token"], "strong"))
        screen.line(
            Text(f"in another shell: export MODELKEEP_URL={places['registry']}; Ctrl-C ends it", "dim")
        )

    return draw


def migrated(before: str | None, after: str) -> View:
    """What a migration did."""

    def draw(screen: Screen) -> None:
        if before == after:
            screen.line(f"The database has revision {after} already.")
        else:
            screen.line(f"The database went from revision {before or 'nothing'} to {after}.")

    return draw


def gateway_rollback(done: dict[str, Any]) -> View:
    """What a gateway's own rollback did."""

    def draw(screen: Screen) -> None:
        gone = done["removed_version"]
        screen.line(
            done["endpoint"], "serves", Text(done["version"], "strong"), f"again; {gone} was taken back."
        )
        fronts = done["fronts"]
        screen.line(
            Text(
                f"  swapped on {fronts} front{'' if fronts == 1 else 's'} in {done['took_ms']:.2f} ms", "dim"
            )
        )
        if done.get("loading"):
            screen.line(Text(f"  {done['version']} is being loaded; its callers wait for that", "warn"))
        if not done.get("journaled", True):
            screen.line(Text("  it could not be written down; free the gateway's disk", "bad"))

    return draw


def gateway_status(found: dict[str, Any]) -> View:
    """What a gateway serves."""

    def draw(screen: Screen) -> None:
        age = found.get("contact_age_s")
        fronts = found.get("fronts", [])
        screen.facts(
            (
                ("gateway", Text(found["gateway"], "strong")),
                ("address", found["url"]),
                ("up for", duration(found["uptime_s"])),
                ("server", "not heard yet" if age is None else f"heard {duration(age)} ago"),
                ("fronts", f"{sum(1 for f in fronts if f['alive'])} of {len(fronts)} alive"),
                ("memory", size(found["memory_bytes"])),
                ("versions", _loaded(found)),
                ("journal", "in order" if found["journal_ok"] else Text("cannot be written", "bad")),
            )
        )
        screen.blank()
        screen.table(
            ("endpoint", "stable", "candidate", "share", "before", "rollout"),
            (
                (
                    r["endpoint"],
                    r["stable"],
                    r["candidate"],
                    share(r["candidate_ppm"]) if r["candidate"] else "",
                    r["previous"],
                    r["rollout"],
                )
                for r in found["routes"]
            ),
            right=(3,),
        )
        screen.blank()
        screen.table(
            ("version", "phase", "device", "pid", "crashes", "memory", "error"),
            (
                (
                    v["version"],
                    v["phase"],
                    ", ".join(sorted(set(v.get("devices", ())))),
                    v["pid"] or "",
                    v["crashes"],
                    size(v["memory_bytes"]),
                    v["error"],
                )
                for v in found["versions"]
            ),
            right=(3, 4, 5),
        )

    return draw


def _loaded(found: dict[str, Any]) -> str:
    """How many versions are loaded, what they hold, and how many sleep."""
    versions = found.get("versions", [])
    asleep = sum(v["phase"] == "sleeping" for v in versions)
    held, budget = size(sum(v["memory_bytes"] for v in versions)), found.get("memory_budget_bytes", 0)
    told = f"{len(versions) - asleep} hold {held}" + (f" of {size(budget)}" if budget else "")
    return f"{told}, {asleep} sleep" if asleep else told


def checks(found: Sequence["Check"]) -> View:
    """The doctor's findings."""

    def draw(screen: Screen) -> None:
        screen.table(
            ("check", "", "found", "what to do"),
            ((c.name, Text("ok", "good") if c.ok else Text("NO", "bad"), c.found, c.advice) for c in found),
        )

    return draw


def fsck(report: "FsckReport") -> View:
    """What hashing everything again has shown."""

    def draw(screen: Screen) -> None:
        word = "ALTERED:" if report.altered and not report.problems else "DAMAGED:"
        verdict = Text("intact:", "good") if report.ok else Text(word, "bad")
        screen.line(
            verdict,
            f"{report.versions:,} versions, {report.blobs:,} blobs, {size(report.size_bytes)}, all hashed",
        )
        if report.problems:
            screen.table(
                ("problem", "file", "in", "digest"),
                (
                    (p.problem, p.path or "the list of files", ", ".join(p.versions + p.artifacts), p.digest)
                    for p in report.problems
                ),
            )
        if report.altered:
            screen.table(
                ("altered", "in", "the log says", "found"),
                ((a.what, a.where, a.recorded or "-", a.found or "-") for a in report.altered),
            )
        if report.dangling:
            room = size(report.dangling_bytes)
            text = f"{report.dangling:,} blobs ({room}) belong to no version, which is no fault"
            screen.line(Text(text, "dim"))

    return draw


def settings(found: dict[str, str]) -> View:
    """Every setting."""
    return lambda screen: screen.facts(
        (name, value if value != "None" else "-") for name, value in found.items()
    )
