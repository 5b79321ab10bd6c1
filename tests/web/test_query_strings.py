"""Query strings are read as the standard library reads them, and what it refuses is refused."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from modelkeep.core import errors
from modelkeep.web import requests

pytestmark = pytest.mark.req("U4")


class Asked(Struct, frozen=True, forbid_unknown_fields=True):
    """Two parameters of any text."""

    a: str | None = None
    b: str | None = None


TEXTS = st.text().filter(lambda text: "\x00" not in text)


@given(a=TEXTS, b=TEXTS)
def test_what_a_client_encodes_is_read_back(a: str, b: str) -> None:
    """Any text, with any encoding of spaces, comes out as it went in."""
    try:
        raw = urlencode({"a": a, "b": b}).encode("ascii")
    except UnicodeEncodeError:
        return  # half a surrogate pair cannot be sent
    assert requests.query(raw, Asked) == Asked(a=a, b=b)
    assert requests.query(raw.replace(b"+", b"%20"), Asked) == Asked(a=a, b=b)


def pairs_of(raw: bytes) -> list[tuple[str, str]] | None:
    """What the library's strict parser finds; None where it refuses."""
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, strict_parsing=bool(raw), errors="strict")
    except ValueError:
        return None


@given(raw=st.text(alphabet="ab=&%+ f0é", max_size=12).map(lambda text: text.encode("latin-1")))
def test_it_is_the_library_s_reading_or_a_refusal(raw: bytes) -> None:
    """For any bytes: the pairs that the library's strict parser finds, or a refusal where it refuses."""
    wanted = pairs_of(raw)
    names = [name for name, _ in wanted or ()]
    if wanted is None or len(set(names)) != len(names) or not {"a", "b"}.issuperset(names):
        with pytest.raises(errors.Invalid):
            requests.query(raw, Asked)
    else:
        assert requests.query(raw, Asked) == Asked(**dict(wanted))


def test_too_many_parameters_are_refused() -> None:
    """One parameter more than the limit is refused before any is read."""
    raw = b"&".join(b"a=1" for _ in range(requests.QUERY_FIELDS_MAX + 1))
    with pytest.raises(errors.Invalid, match="percent-encode"):
        requests.query(raw, Asked)
