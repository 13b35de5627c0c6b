"""Hypothesis strategies that several test modules share."""

from hypothesis import strategies as st

from sar2eo.geo.windows import Lattice


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    factor = draw(st.sampled_from([1, 2, 4, 8]))
    tile = factor * draw(st.integers(3, 12))
    overlap = factor * draw(st.integers(0, tile // factor // 2))
    shape = (draw(st.integers(1, 90)), draw(st.integers(1, 90)))
    return Lattice(shape, tile, overlap, factor)
