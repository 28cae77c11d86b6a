"""Which column chunks are fetched together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dask_loader.read.ranges import HOLE_BYTES, REQUEST_BYTES, merge

CHUNKS = st.lists(
    st.tuples(st.integers(0, 1 << 26), st.integers(1, 1 << 24)).map(
        lambda pair: (pair[0], pair[0] + pair[1])
    )
)


@given(CHUNKS)
def test_merged_ranges_cover_all_chunks_and_no_large_hole(
    chunks: list[tuple[int, int]],
) -> None:
    found = merge(chunks)
    assert found == sorted(found)
    for chunk in chunks:
        assert any(a <= chunk[0] and chunk[1] <= b for a, b in found)
    for a, b in found:
        inside = sorted(c for c in chunks if a <= c[0] and c[1] <= b)
        assert b - a <= REQUEST_BYTES or (a, b) in inside
        end = a
        for start, stop in inside:
            assert start - end <= HOLE_BYTES
            end = max(end, stop)
        assert end == b


def test_near_chunks_are_one_request_and_far_ones_two() -> None:
    assert merge([(10, 20), (0, 5)]) == [(0, 20)]
    far = 20 + HOLE_BYTES + 1
    assert merge([(0, 20), (far, far + 1)]) == [(0, 20), (far, far + 1)]
