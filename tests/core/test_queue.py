"""What waits of one conversation: order, the sealed batch, and what is shown before it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cached_session.core.history import History
from cached_session.core.items import MAX_ITEMS
from cached_session.core.queue import Entry, Queue, Row
from tests.core.strategies import held, message


def row(seq: int, *, sealed: bool = False) -> Row:
    """A row of a log, accepted at that second."""
    return Row(seq, json.dumps(message(f"t{seq}")).encode(), sealed, float(seq))


def rows(*seqs: int) -> list[Row]:
    return [row(seq) for seq in seqs]


def waiting(*seqs: int, sealed: int = 0) -> Queue:
    """A queue of these rows, of which the first so many are sealed."""
    queue = Queue()
    queue.take_in(rows(*seqs))
    if sealed:
        queue.seal(seqs[:sealed], seqs[sealed - 1])
    return queue


def seqs(queue: Queue) -> list[int]:
    return [entry.seq for entry in queue.entries]


def texts(items: list[dict[str, object]] | None) -> list[object] | None:
    """What a view shows."""
    return None if items is None else [item["content"][0]["text"] for item in items]  # type: ignore[index]


def consistent(queue: Queue) -> None:
    """Its counts are those of its entries."""
    assert queue.size == sum(len(entry.data) for entry in queue.entries)
    assert 0 <= queue.sealed <= len(queue)
    assert queue.batch == tuple(entry.data for entry in queue.entries[: queue.sealed])
    assert seqs(queue) == sorted({*seqs(queue)})


def test_a_row_is_taken_in_once() -> None:
    """Rows that were taken in are passed over, and so are those of a place before them."""
    queue = waiting(2, 3)
    queue.take_in(rows(1, 2, 3, 5))
    queue.take_in(rows(4))
    assert seqs(queue) == [2, 3, 5]
    assert queue.seen == 5
    assert queue.oldest == 2.0
    consistent(queue)


def test_what_landed_and_is_read_again_is_not_taken_in() -> None:
    """A place is never used again, though nothing waits any more."""
    queue = waiting(1, 2, sealed=2)
    queue.land(2)
    queue.take_in(rows(1, 2))
    assert not queue.entries
    assert queue.oldest is None
    assert queue.landed == 2
    consistent(queue)


def test_a_sealed_batch_goes_as_it_is() -> None:
    """What is accepted behind a sealed batch does not become a part of it."""
    queue = waiting(1, 2, sealed=2)
    queue.take_in(rows(3))
    assert queue.through() == 2
    assert len(queue.batch) == 2


def test_a_new_batch_has_no_more_than_a_request_may() -> None:
    """A batch ends after as many items as one request carries."""
    assert waiting(*range(1, MAX_ITEMS + 9)).through() == MAX_ITEMS


def test_the_rest_of_a_batch_stays_sealed() -> None:
    """Of a batch of which the first items landed, the others are the batch."""
    queue = waiting(1, 2, 3, 4, sealed=3)
    queue.land(2)
    assert seqs(queue) == [3, 4]
    assert queue.sealed == 1
    assert queue.landed == 2
    consistent(queue)


def test_nothing_that_landed_changes_nothing() -> None:
    """That none of a batch landed says nothing about places."""
    queue = waiting(3, 4, sealed=2)
    queue.land(0)
    assert queue.landed == 0
    assert seqs(queue) == [3, 4]


def test_what_others_took_back_is_not_sealed() -> None:
    """A batch has the rows that the log still had when it was sealed."""
    queue = waiting(1, 2, 3, 4)
    queue.seal([1, 3], 3)
    assert seqs(queue) == [1, 3, 4]
    assert queue.sealed == 2
    consistent(queue)


def test_a_batch_of_which_all_was_taken_back_is_none() -> None:
    """Where nothing is left of a batch, nothing is sealed."""
    queue = waiting(1, 2, 3)
    queue.seal([], 2)
    assert seqs(queue) == [3]
    assert queue.batch == ()
    consistent(queue)


def test_a_row_is_removed_wherever_it_stands() -> None:
    """The newest row may be withdrawn, or one between others, and what is sealed stays so."""
    queue = waiting(1, 2, 3, 4, sealed=2)
    queue.remove(frozenset([4]))
    queue.remove(frozenset([3]))
    assert queue.sealed == 2
    queue.remove(frozenset([1]))
    assert seqs(queue) == [2]
    assert queue.sealed == 1
    consistent(queue)


def test_what_waits_is_shown_behind_what_the_server_has() -> None:
    """A view holds the newest of both, in order."""
    queue = waiting(1, 2)
    queue.show_behind(History([held("a", "old"), held("b", "newer")], complete=True))
    assert texts(queue.view(None)) == ["old", "newer", "t1", "t2"]
    assert texts(queue.view(3)) == ["newer", "t1", "t2"]
    assert texts(queue.view(1)) == ["t2"]
    assert queue.view(0) == []
    assert texts(queue.tail(None)) == ["t1", "t2"]


def test_a_view_that_is_not_held_is_none() -> None:
    """What the server may have beyond what is known is never taken for nothing."""
    queue = waiting(1)
    assert queue.view(None) is None
    assert queue.view(2) is None
    assert texts(queue.view(1)) == ["t1"]
    queue.show_behind(History([held("a", "old")], complete=False))
    assert texts(queue.view(2)) == ["old", "t1"]
    assert queue.view(3) is None
    assert queue.view(None) is None


def test_what_is_shown_stays_as_it_was_shown() -> None:
    """What becomes of the history later does not change what stands before what waits."""
    queue, history = waiting(1), History([held("a", "old")], complete=True)
    queue.show_behind(history)
    history.drop_last()
    assert texts(queue.view(None)) == ["old", "t1"]
    assert queue.shown_size


def test_with_the_last_item_what_is_shown_goes() -> None:
    """An empty queue keeps no copy of the history, and takes none."""
    queue, history = waiting(1, sealed=1), History([held("a", "old")], complete=True)
    queue.show_behind(history)
    queue.land(1)
    assert queue.shown_size == 0
    queue.show_behind(history)
    assert queue.shown_size == 0


def test_a_view_belongs_to_the_caller() -> None:
    """What a caller does with a view is not seen by the next one."""
    queue = waiting(1)
    for _ in range(2):
        shown = queue.tail(None)
        assert texts(shown) == ["t1"]
        shown[0]["content"].clear()


def test_an_entry_is_shown_without_an_id() -> None:
    """An item that waits has no id yet; how it is shown is made once."""
    entry = Entry(1, json.dumps(message("hi")).encode(), 0.0)
    assert entry.held.id == ""
    assert entry.held is entry.held


@pytest.mark.parametrize("removed", [{1}, {1, 2}, {2}, {1, 3}, {3}, {1, 2, 3}, {9}])
def test_counts_hold_after_a_removal(removed: set[int]) -> None:
    """Size, batch and order are those of what is left."""
    queue = waiting(1, 2, 3, sealed=2)
    queue.remove(removed)
    assert seqs(queue) == [seq for seq in (1, 2, 3) if seq not in removed]
    assert queue.sealed == len({1, 2} - removed)
    consistent(queue)


@given(
    st.lists(st.tuples(st.sampled_from(["take", "seal", "land", "withdraw"]), st.integers(0, 5)))
)
def test_nothing_gets_lost_or_out_of_order(steps: list[tuple[str, int]]) -> None:
    """What was taken in either waits, has landed or was withdrawn; it lands in order."""
    queue, last, gone = Queue(), 0, 0
    for step, count in steps:
        if step == "take":
            queue.take_in(rows(*range(last + 1, last + 1 + count)))
            last += count
        elif step == "seal" and queue.entries:
            through = queue.through()
            queue.seal([seq for seq in seqs(queue) if seq <= through], through)
        elif step == "land":
            landed = queue.entries[: min(count, queue.sealed)]
            queue.land(len(landed))
            gone += len(landed)
            assert not landed or queue.landed == landed[-1].seq
        elif step == "withdraw" and len(queue) > queue.sealed:
            queue.remove(frozenset([seqs(queue)[-1]]))
            gone += 1
        assert len(queue) == last - gone
        assert queue.seen == last
        consistent(queue)
