"""Frames: whatever is sent comes out, however it was cut, and nothing that claims too much is believed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import errors
from modelkeep.serving import frames
from modelkeep.serving.frames import FrameReader, Kind

FRAMES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.sampled_from(list(Kind)), st.binary(max_size=200)))


@given(sent=FRAMES, cuts=st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_cutting(sent: list[tuple[int, Kind, bytes]], cuts: list[int]) -> None:
    """A stream of frames gives the same frames in whatever pieces it arrives."""
    stream = b"".join(frames.pack(*frame) for frame in sent)
    reader, got, at, turn = FrameReader(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        got += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    assert got == [(identity, int(kind), payload) for identity, kind, payload in sent]


def test_a_frame_over_the_cap_is_refused_before_it_is_read() -> None:
    """The claim alone ends the stream; no memory is given to it."""
    with pytest.raises(errors.LimitExceeded, match="at most 100"):
        FrameReader(100).feed(frames.head(1, Kind.REQUEST, 101))
    reader = FrameReader(100)
    assert reader.feed(frames.head(1, Kind.REQUEST, 101)[:5]) == []
    with pytest.raises(errors.LimitExceeded):
        reader.feed(frames.head(1, Kind.REQUEST, 101)[5:])


def test_an_unknown_kind_is_a_stream_out_of_step() -> None:
    """Garbage is refused, not skipped."""
    with pytest.raises(errors.Invalid, match="out of step"):
        FrameReader().feed(frames.HEADER.pack(0, 1, 99))


def test_a_payload_that_no_reader_takes_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender finds out, instead of losing the connection."""
    monkeypatch.setattr(frames, "FRAME_MAX_BYTES", 10)
    with pytest.raises(errors.LimitExceeded):
        frames.pack(1, Kind.ANSWER, b"x" * 11)
