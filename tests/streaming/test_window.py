"""The window: never more under way than allowed, nothing lost, large parcels alone. Pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvrt.errors import ProtocolError
from dvrt.streaming.window import Window


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.booleans(), st.integers(0, 120), st.integers(0, 5)), max_size=60),
)
def test_the_window_against_a_list_of_what_is_under_way(limit, actions):
    window, under_way, sent = Window(limit), {}, 0
    for is_send, nbytes, which in actions:
        if is_send:
            fits = not under_way or sum(under_way.values()) + nbytes <= limit
            assert window.fits(nbytes) == fits
            if fits:
                assert window.send(nbytes) == sent
                under_way[sent] = nbytes
                sent += 1
            else:
                with pytest.raises(ProtocolError):
                    window.send(nbytes)
        elif under_way:
            sequence = sorted(under_way)[which % len(under_way)]
            window.acknowledge(sequence)
            del under_way[sequence]
            with pytest.raises(ProtocolError, match="not under way"):
                window.acknowledge(sequence)
        assert window.resume_point == min(under_way, default=sent)
        statistics = window.statistics()
        assert statistics.in_flight_bytes == sum(under_way.values())
        assert (statistics.in_flight, statistics.sent) == (len(under_way), sent)


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="lets nothing through"):
        Window(0)
