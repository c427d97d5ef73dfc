"""Items to batches."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from cached_session.core.items import MAX_BYTES, MAX_ITEMS, batches

sizes = st.lists(
    st.sampled_from([1, 100, MAX_BYTES // 20, MAX_BYTES // 3, MAX_BYTES, MAX_BYTES + 1]),
    max_size=70,
)


@given(sizes)
@example([])
@example([1] * 20)
@example([1] * 21)
@example([MAX_BYTES, 1])
@example([MAX_BYTES + 1, MAX_BYTES + 1])
def test_batches(sizes: list[int]) -> None:
    """Nothing is lost or moved, batches are within both bounds, and none is smaller than needed."""
    items = [b"x" * size for size in sizes]
    cut = list(batches(items))
    assert [item for batch in cut for item in batch] == items
    for batch in cut:
        assert 1 <= len(batch) <= MAX_ITEMS
        assert len(batch) == 1 or sum(map(len, batch)) <= MAX_BYTES
    for batch, following in itertools.pairwise(cut):
        assert len(batch) == MAX_ITEMS or sum(map(len, batch)) + len(following[0]) > MAX_BYTES


def test_batches_are_sealed() -> None:
    """A batch is a tuple, so nobody adds to it after it was sent."""
    (batch,) = batches([b"a", b"b"])
    assert batch == (b"a", b"b")
    assert isinstance(batch, tuple)
