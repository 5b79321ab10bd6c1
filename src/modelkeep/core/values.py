"""The small values everything else is written with: names, ids, digests, references, people, and the limits.

References are parsed and printed here and nowhere else. The grammar, one for CLI, SDK, HTTP, YAML and UI:

    reference = [ project "/" ] model [ selector ] [ "?at=" time ]
    selector  = ":" semver            exactly this version          churn:2.1.0
              | ":" range             the highest that matches      churn:^2.1   churn:2.1.x
              | ":#" number           by number                     churn:#7
              | "@" alias             a movable pointer             churn@champion (also latest, newest)
              | "@" digest            by content                    churn@sha256:...
              | "#" stage             a governed slot               churn#production

A model's name may have spaces and most marks in it, as MLflow's have (`My Model (v2):2.1.0`), but none that
means something here; every other name is a plain word.

MLflow's `models:/m/1`, `models:/m/2.1.0`, `models:/m@a` and `models:/m/Production` are read as the same
things.
"""

import re
import shlex
import unicodedata
from datetime import UTC, datetime
from enum import StrEnum
from typing import NewType

from msgspec import Struct

from modelkeep.core import codec, errors, semver

# Limits of what may come in from outside; each with the reason for its size.
NAME_MAX = 128
"""Characters of a name: it must fit a file name, a label and a terminal line."""
TEXT_MAX = 10_000
"""Characters of a reason, comment or description: a page, not a book."""
TAG_KEY_MAX = 250
"""Characters of a tag key, as MLflow has it."""
TAG_VALUE_MAX = 100_000
"""Characters of a tag value, as MLflow's registry has it: prompts keep their text in one."""
TAGS_MAX = 200
"""Tags of one model or version."""
TAGS_TEXT_MAX = 300_000
"""Characters of all tags of a model or version together: they are part of each answer that shows it."""
METRICS_MAX = 2_000
"""Metrics of one version, slices included."""
PARAMS_MAX = 2_000
"""Parameters of one version."""
PARAM_VALUE_MAX = 8_000
"""Characters of a parameter's value: more than MLflow's runs have."""
FILES_MAX = 10_000
"""Files of one version."""
PATH_MAX = 1_024
"""Bytes of a path inside a version; a part of it has at most 255, as file systems have it."""
REFERENCE_MAX = 600
"""Characters of a whole reference."""
PAGE_MAX = 1_000
"""Rows of one page of any list; the default page has 100."""
PAGE_DEFAULT = 100
"""Rows of a page when the caller does not say."""

DEFAULT_PROJECT = "default"

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits, always whole."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", re.ASCII)
_MODEL_NAME = re.compile(
    r"[A-Za-z0-9_(\[](?:[A-Za-z0-9 _.,;!$&()+=^~\[\]{}-]{0,126}[A-Za-z0-9_,;!$&()+=^~\[\]{}-])?", re.ASCII
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_.-]{0,254}[A-Za-z0-9_-](?:/[A-Za-z0-9_.-]{0,254}[A-Za-z0-9_-])*")
"""Paths as most are, in which nothing has to be looked for."""
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,6})?) ?(?P<unit>b?|[kmgt]i?b?)", re.ASCII)
_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"


def check_name(text: str, what: str) -> str:
    """Return a name that is fit for a file, a label and a URL.

    Raises:
        InvalidName: anything but 1 to 128 ASCII letters, digits, `.`, `_`, `-`, beginning with a letter or
        digit.
    """
    if not _NAME.fullmatch(text):
        shown = printable(text)[:60]
        raise errors.InvalidName(
            f"'{shown}' cannot be the {what} name: use 1 to {NAME_MAX} ASCII letters, digits, '.', '_' "
            "or '-', beginning with a letter or a digit.",
            field=what,
        )
    return text


def check_model_name(text: str) -> str:
    """Return what a registered model can be called: freer than other names, because models come from
    elsewhere with the names they have.

    Raises:
        InvalidName: longer than 128, not ASCII, with a mark that means something in references, addresses or
        files (`/ : @ # ? % \\ < > | *` and quotes), with two spaces in a row, or not beginning with a letter,
        digit, `_`, `(` or `[`, or ending in a space. A plain name is one as ever.
    """
    if _NAME.fullmatch(text) or (_MODEL_NAME.fullmatch(text) and "  " not in text):
        return text
    shown = printable(text)[:60]
    if not text.isascii():
        raise errors.InvalidName(
            f"'{shown}' cannot be the model name: it has letters outside of ASCII, which others may read or "
            "type as another name; spell it with A to Z.",
            field="model",
        )
    raise errors.InvalidName(
        f"'{shown}' cannot be the model name: use 1 to {NAME_MAX} ASCII letters, digits, single spaces and "
        "marks other than / : @ # ? % \\ < > | * and quotes, beginning with a letter, a digit, '_', '(' or "
        "'[', and not ending in a space or a dot.",
        field="model",
    )


def check_text(text: str, what: str, *, maximum: int = TEXT_MAX, required: bool = False) -> str:
    """Return free text that is safe to store and to show: bounded, no control or bidirectional override
    characters.

    Raises:
        LimitExceeded: longer than allowed.
        Invalid: empty though required, or with characters that could hide what a reader sees.
    """
    if required and not text.strip():
        raise errors.Invalid(f"Say why: {what} must not be empty.", field=what)
    if len(text) > maximum:
        raise errors.LimitExceeded(
            f"The {what} has {len(text):,} characters; at most {maximum:,} fit.", field=what
        )
    if _CONTROL.search(text):
        raise errors.Invalid(f"The {what} contains control characters; remove them.", field=what)
    return text


def check_path(path: str) -> str:
    """Return the path of a file inside a version. Refused rather than repaired.

    Raises:
        InvalidManifest: absolute, empty or dotted parts, backslash, colon, control characters, or too long.
    """
    if _PLAIN_PATH.fullmatch(path) and len(path) <= PATH_MAX:
        return path
    parts = path.split("/")
    encoded = path.encode("utf-8", "surrogatepass")
    bad = (
        not path
        or len(encoded) > PATH_MAX
        or "\\" in path
        or ":" in path
        or bool(_CONTROL.search(path))
        or any(unicodedata.category(c) == "Cf" for c in path)  # invisible: two names that look alike
        or "\n" in path
        or "\t" in path
        or any(part in ("", ".", "..") or len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
        or any(part[-1] in ". " or part[0] == " " for part in parts if part)
    )
    if bad:
        raise errors.InvalidManifest(
            f"{quoted(path)} cannot be a file of a version: use a relative path of plain names "
            "joined by '/', without '.', '..', backslash, colon or control characters.",
            field="path",
        )
    return path


def check_digest(text: str) -> Digest:
    """Return a whole digest.

    Raises:
        InvalidReference: not `sha256:` and 64 lower-case hexadecimal digits.
    """
    if not _DIGEST.fullmatch(text):
        raise errors.InvalidReference(
            f"{quoted(text, 90)} is not a digest; write 'sha256:' and all 64 hexadecimal digits.",
            field="digest",
        )
    return Digest(text)


def printable(text: str) -> str:
    """Text that a terminal can show without being steered by it: control characters become `\\xNN`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def quoted(text: str, maximum: int = 80) -> str:
    """Somebody's text within a sentence: in quotes, printable, and no longer than that. It is the one way to
    put it there: `repr` on top of `printable` would escape what is escaped already."""
    return f"'{printable(text)[:maximum]}'"


def in_shell(name: object) -> str:
    """A name or a reference as it is typed into a shell: the commands that messages give are copied from
    there, and a name may have blanks and marks that would mean something."""
    return shlex.quote(str(name))


def parse_size(text: str) -> int:
    """Bytes, as people write them: 1500000, 512MiB, 2 GiB, 1.5GB.

    Raises:
        Invalid: no such size.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None:
        raise errors.Invalid(f"{quoted(text, 40)} is no size; write it like 512MiB or 2GiB.")
    unit = found["unit"]
    power = " kmgt".index(unit[0]) if unit and unit != "b" else 0
    return int(float(found["number"]) * (1024 if "i" in unit else 1000) ** power)


def new_id(prefix: str, now: datetime, entropy: bytes) -> str:
    """A prefixed UUIDv7 in base32: sorts by time, and says what it names.

    Args:
        entropy: 10 random bytes.
    """
    value = int(now.timestamp() * 1000) << 80
    value |= int.from_bytes(entropy[:10], "big") & ~(0xF << 76) & ~(0x3 << 62)
    value |= (0x7 << 76) | (0x2 << 62)
    digits = []
    for _ in range(26):
        digits.append(_BASE32[value & 31])
        value >>= 5
    return f"{prefix}_{''.join(reversed(digits))}"


def id_behind(former: str, prefix: str, now: datetime, entropy: bytes) -> str:
    """The same, and behind a former id of the kind also where the clock was set back since that was made."""
    value = 0
    for digit in former.rpartition("_")[2]:
        value = value << 5 | _BASE32.index(digit)
    made_at = datetime.fromtimestamp(((value >> 80) + 1) / 1000, UTC)
    return new_id(prefix, max(now, made_at), entropy)


class ActorKind(StrEnum):
    """Who can act."""

    USER = "user"
    SERVICE = "service"
    SYSTEM = "system"


class Actor(Struct, frozen=True, kw_only=True):
    """Who did something. `asserted` means nobody checked: local mode believes the operating system's user
    name.
    """

    name: str
    kind: ActorKind = ActorKind.USER
    asserted: bool = False


SYSTEM = Actor(name="modelkeep", kind=ActorKind.SYSTEM)
"""The controller and other parts of Modelkeep when they act by themselves."""


class ModelName(Struct, frozen=True, order=True):
    """A registered model's full name: the project it lives in, and its name there."""

    project: str
    name: str

    def __str__(self) -> str:
        return self.name if self.project == DEFAULT_PROJECT else f"{self.project}/{self.name}"


def parse_model_name(text: str) -> ModelName:
    """Read `model` or `project/model`.

    Raises:
        InvalidName: a part is not a name, or there are more than two.
    """
    project, slash, name = text.rpartition("/")
    if slash and "/" in project:
        raise errors.InvalidName(f"{quoted(text)} has too many parts; write 'model' or 'project/model'.")
    return ModelName(check_name(project, "project") if slash else DEFAULT_PROJECT, check_model_name(name))


class Exact(Struct, frozen=True, tag="semver"):
    """Exactly this semantic version."""

    version: str


class Within(Struct, frozen=True, tag="range"):
    """The highest released version within a range."""

    range: str


class Numbered(Struct, frozen=True, tag="number"):
    """The version with this number."""

    number: int


class Aliased(Struct, frozen=True, tag="alias"):
    """What the alias points to; `latest` (the highest release that is not withdrawn) and `newest` (last
    registered) always exist."""

    alias: str


class Staged(Struct, frozen=True, tag="stage"):
    """What occupies the stage."""

    stage: str


class Content(Struct, frozen=True, tag="digest"):
    """The version with this content."""

    digest: Digest


Selector = Exact | Within | Numbered | Aliased | Staged | Content


class Ref(Struct, frozen=True, kw_only=True):
    """A parsed reference; `selector` None names the model itself."""

    model: ModelName
    selector: Selector | None = None
    at: datetime | None = None

    def __str__(self) -> str:
        mark = ""
        match self.selector:
            case None:
                pass
            case Exact(version=text) | Within(range=text):
                mark = f":{text}"
            case Numbered(number=number):
                mark = f":#{number}"
            case Aliased(alias=name):
                mark = f"@{name}"
            case Staged(stage=name):
                mark = f"#{name}"
            case Content(digest=digest):
                mark = f"@{digest}"
        return f"{self.model}{mark}{f'?at={codec.format_time(self.at)}' if self.at else ''}"


def parse_ref(text: str) -> Ref:
    """Read a reference in our grammar or in MLflow's words.

    Raises:
        InvalidReference: the text is not a reference; the message says which part.
        InvalidName, InvalidSemver, InvalidTime: a part of it is not what its place asks for.
    """
    if len(text) > REFERENCE_MAX:
        raise errors.InvalidReference(f"A reference has at most {REFERENCE_MAX} characters.")
    if text.startswith("models:/"):
        return _parse_mlflow(text)
    body, question, query = text.partition("?")
    at = None
    if question:
        key, _, value = query.partition("=")
        if key != "at" or not value:
            raise errors.InvalidReference(f"After '?' only 'at=TIME' is understood, not {quoted(query, 40)}.")
        at = codec.parse_time(value)
    cut = min((i for i in (body.find(c) for c in ":@#") if i >= 0), default=len(body))
    name, mark, rest = body[:cut], body[cut : cut + 1], body[cut + 1 :]
    if not name:
        raise errors.InvalidReference(f"{quoted(text)} names no model; write for example churn:2.1.0.")
    model = parse_model_name(name)
    if not mark:
        return Ref(model=model, at=at)
    if not rest:
        raise errors.InvalidReference(f"Nothing follows {mark!r} in {quoted(text)}.")
    return Ref(model=model, selector=_parse_selector(mark, rest), at=at)


def _parse_selector(mark: str, rest: str) -> Selector:
    match mark:
        case "#":
            return Staged(check_name(rest, "stage").lower())
        case "@":
            return (
                Content(check_digest(rest))
                if rest.startswith("sha256:")
                else Aliased(check_name(rest, "alias"))
            )
        case _:
            if rest.startswith("#"):
                return Numbered(_parse_number(rest[1:]))
            return (
                Within(str(semver.parse_range(rest)))
                if semver.is_range(rest)
                else Exact(str(semver.parse(rest)))
            )


def _parse_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18 or text.startswith("0"):
        raise errors.InvalidReference(
            f"{quoted(text, 40)} is not a version number; write for example churn:#7."
        )
    return int(text)


def _parse_mlflow(text: str) -> Ref:
    rest = text.removeprefix("models:/")
    if "@" in rest:
        name, _, alias = rest.partition("@")
        return Ref(model=parse_model_name(name), selector=_parse_selector("@", alias))
    name, slash, last = rest.rpartition("/")
    if not slash or not name:
        raise errors.InvalidReference(
            f"{quoted(text)} lacks a version; write models:/NAME/1 or models:/NAME@ALIAS."
        )
    model = parse_model_name(name)
    if last.isascii() and last.isdigit():
        return Ref(model=model, selector=Numbered(_parse_number(last)))
    if last.lower() == "latest":
        return Ref(model=model, selector=Aliased("latest"))
    if last[:1].isdigit():
        return Ref(model=model, selector=Exact(str(semver.parse(last))))
    return Ref(model=model, selector=_parse_selector("#", last))
