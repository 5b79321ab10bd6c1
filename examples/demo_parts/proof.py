"""The demo's last act: what was live when, how one knows, what a flipped byte does, and what the callers saw
of all this.
"""

from demo_parts.house import House, flip


def look_back(house: House) -> None:
    """What was when, and how one knows."""
    tell, shell = house.story, house.shell
    tell.chapter(
        "What was live, and who says so?",
        "The log is the record: every change was written together with its event, and every event is "
        "chained to the one before it.",
    )
    at = house.wide_was_live.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    shell.type(house.ana, f"modelkeep whatwas flights#production --at {at}")
    was = house.registry.whatwas("flights#production", house.wide_was_live)
    tell.claim(
        "at that moment it was 2.1.0, approved by ben",
        was.version.semver == "2.1.0" and "ben" in was.approved_by,
        was,
    )
    shell.type(house.ben, "modelkeep history flights", lines_max=24)
    shell.type(house.admin, "modelkeep audit verify")


def flip_a_byte(house: House) -> None:
    """Bytes are not believed, they are checked."""
    tell, shell = house.story, house.shell
    tell.chapter("One flipped byte", "A disk lies, or a person does. One byte of a stored model changes.")
    version = house.registry.get_version("flights:2.0.0")
    entry = next(file for file in version.files if file.path == "model.onnx")
    name = entry.digest.removeprefix("sha256:")
    blob = house.premises.folder / "house" / "blobs" / "sha256" / name[:2] / name[2:]
    flip(blob, entry.size_bytes // 2)
    where = f"byte {entry.size_bytes // 2:,} of {blob.relative_to(house.premises.folder)}"
    tell.row(f"(changed: {where})")
    found = shell.type(house.admin, "modelkeep fsck", code=1)
    said = found.out + found.err
    tell.claim(
        "fsck finds it and names every version that has this file, of three models",
        all(f"{model}:" in said for model in ("flights", "newark", "kennedy")),
        said,
    )
    flip(blob, entry.size_bytes // 2)
    tell.row("(and put back)")
    shell.type(house.admin, "modelkeep fsck")
    tell.claim("and is content again", True)


def close(house: House) -> None:
    """What the callers saw of all this."""
    tell = house.story
    tell.chapter("The callers", "None of the airline's knows that anything happened.")
    seen = house.traffic.end()
    latency = seen["latency_ms"]
    shares = sorted(seen["versions"].items())
    tell.row(", ".join(f"{count:,} answers by {name}" for name, count in shares))
    tell.row(f"half of them within {latency['p50']} ms, 99 % within {latency['p99']} ms")
    tell.claim(
        f"{seen['answered']:,} answers to {seen['callers']:,} callers, and {seen['failed']} failed",
        seen["failed"] == 0,
        seen,
    )
