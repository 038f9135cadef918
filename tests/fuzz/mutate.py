"""Inputs made from valid ones, with Hypothesis: where it fails, it shrinks to what matters."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.fuzz.target import Target

MOST_BYTES = 1 << 16


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return raw bytes, and valid inputs changed in up to six places: cut, doubled, flipped, tokens put in."""
    mutated = st.builds(
        _mutated,
        st.sampled_from(target.seeds),
        st.lists(
            st.tuples(
                st.integers(0, 5),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 64),
                st.one_of(st.sampled_from(target.tokens or (b"\x00",)), st.binary(max_size=8)),
            ),
            min_size=1,
            max_size=6,
        ),
    )
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=200))


def _mutated(data: bytes, changes: list[tuple[int, float, int, bytes]]) -> bytes:
    for kind, place, length, token in changes:
        at = int(place * (len(data) + 1))
        rest = data[at + length :]
        match kind:
            case 0:
                data = data[:at] + token + rest
            case 1:
                data = data[:at] + token + data[at:]
            case 2:
                data = data[:at] + rest
            case 3:
                data = data[:at] + data[at : at + length] * 3 + rest
            case 4:
                data = data[:at] + bytes(byte ^ (length or 1) for byte in data[at : at + 1]) + data[at + 1 :]
            case _:
                data = data[:at] + data[at : at + length].swapcase() + rest
    return data[:MOST_BYTES]
