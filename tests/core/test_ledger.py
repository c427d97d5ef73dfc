"""The ledger alone, without an event loop: random calls, and each entry of its table put wrong."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

import pytest

from cached_session.core.history import History
from cached_session.core.items import Held
from cached_session.core.ledger import (
    TRANSITIONS,
    Batch,
    Event,
    Front,
    ImpossibleEvent,
    Ledger,
    List,
    Promise,
    Seal,
)
from cached_session.core.matching import VERBATIM
from cached_session.core.queue import Row
from cached_session.core.unsettled import Untold
from tests.campaigns.account import Violation
from tests.core.ledger_world import At, World
from tests.core.strategies import held, message

RUNS = 300
"""Of 40 operations each, in a run of the tests."""
MANY = 6000
LOOKED = 500
"""Runs with a wrong entry, of which those are made that use it."""

Entry: TypeAlias = tuple[Front, Event]
ENTRIES: list[Entry] = [(front, event) for front, row in TRANSITIONS.items() for event in row]


def outgoing(text: str) -> bytes:
    """A message as it is sent."""
    return json.dumps(message(text)).encode()


def listed(ledger: Ledger, *items: Held, reached_start: bool) -> int | Untold | None:
    """A listing shows some items."""
    return ledger.listed(
        [*items],
        found=None,
        positions={},
        reached_start=reached_start,
        number=ledger.begin_listing(),
        at=At(0.0),
        asked_at=0.0,
        rewriting=VERBATIM,
    )


def campaign(seeds: Iterable[int]) -> Counter[str]:
    """Makes a run for each seed.

    Raises:
        Violation: Of one of them; it says which.
    """
    tally: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed)
        try:
            world.run()
        except Exception as error:
            error.add_note(f"tests.core.ledger_world.World({seed}).run()")
            raise
        tally.update(world.tally)
    return tally


def told(tally: Counter[str], first: int, seconds: float) -> str:
    return (
        f"ledger: seeds from {first}: {tally['operations']} operations, {tally['faults']} faults, "
        f"{tally['crashes']} crashes, {tally['torn']} loops lost, nothing lost or doubled; "
        f"{tally['operations'] / seconds:,.0f} operations a second"
    )


def run_and_tell(runs: int, tell: Callable[[str], None]) -> Counter[str]:
    first, began = random.randrange(1 << 40), time.process_time()
    print(f"seeds from {first}")  # noqa: T201 - shown if it fails
    tally = campaign(range(first, first + runs))
    tell(told(tally, first, time.process_time() - began))
    return tally


def test_nothing_is_lost_doubled_or_read_wrongly(tell: Callable[[str], None]) -> None:
    """Whatever goes wrong, the account is right at the end, and so was every read."""
    tally = run_and_tell(RUNS, tell)
    assert tally["operations"] == RUNS * 40
    for name in ("faults", "crashes", "torn", "reconciled", "hits", "reads", "handed over"):
        assert tally[name], f"a campaign without {name} shows little"


@pytest.mark.campaign
def test_nothing_is_lost_in_many_runs(tell: Callable[[str], None]) -> None:
    """The same, for longer."""
    tally = run_and_tell(MANY, tell)
    for name in ("duplicates", "late copies removed", "undecidable", "paused", "dropped"):
        assert tally[name], f"a campaign without {name} shows little"


# Wrong entries


HARMLESS: dict[tuple[Front, Event, Front], str] = {
    (Front.FLYING, Event.REFUSED, Front.NONE): (
        "A batch that was refused is sealed anew before it is sent again: one commit more. In the "
        "log of what is recorded a note says so anyway."
    ),
    (Front.DOUBT, Event.REST, Front.SEALED): (
        "An own batch is in no log, so that sealing it anew says nothing. After a listing has "
        "decided about a recorded one, whoever asked for it notes that, and NOTE leads to NONE "
        "from SEALED as well."
    ),
}
"""Wrong entries that nobody can notice, and why."""


def _appending(text: str) -> Ledger:
    """A ledger of a conversation that is empty, with a sealed batch of its own."""
    ledger = Ledger("conv_1", threading.Lock())
    ledger.known = History(complete=True)
    ledger.take_own((outgoing(text),))
    ledger.sealed_own()
    return ledger


def _taken_over(paused: str | None) -> Ledger:
    """A ledger of a process that finds a batch that may have been sent."""
    before, after = (Ledger("conv_1", threading.Lock()) for _ in range(2))
    window = [held("msg_1", "before")]
    doubt = before.watch.dump(window, complete=False, now=0.0, sending=True)
    rows = [Row(1, outgoing("a"), True, 0.0)]
    after.load(rows, doubt, paused, None, first=True, mine=True, now=0.0, expires=100.0)
    return after


def _is_next(ledger: Ledger, batch: Batch, wanted: type | None) -> None:
    step = ledger.next(batch, anchored=True)
    if not (step is None if wanted is None else isinstance(step, wanted)):
        raise Violation(f"{step} is next for a batch that is {batch.front}")


def _stuck_is_untold() -> None:
    ledger = _taken_over("refused")
    told = listed(ledger, held("msg_2", "after"), reached_start=False)
    assert isinstance(told, Untold)
    _is_next(ledger, ledger.recorded, None)


def _doubt_is_noted() -> None:
    ledger = _taken_over(None)
    ledger.noted((), unsent=True)
    _is_next(ledger, ledger.recorded, List)


SCRIPTS: dict[Entry, Callable[[], None]] = {
    (Front.STUCK, Event.UNTOLD): _stuck_is_untold,
    (Front.DOUBT, Event.NOTE): _doubt_is_noted,
}
"""What the campaign does not come to."""


class _Watched(dict[Event, Front]):
    """A row of the table that notes which of its entries are used."""

    def __init__(self, front: Front, row: dict[Event, Front], used: set[Entry]) -> None:
        super().__init__(row)
        self._front, self._used = front, used

    def __getitem__(self, event: Event) -> Front:
        following = super().__getitem__(event)
        self._used.add((self._front, event))
        return following


@pytest.fixture(scope="module", name="seeds_of")
def _seeds_of() -> dict[Entry, list[int]]:
    """Which runs use which entries: no other one can notice that it is wrong."""
    seeds: dict[Entry, list[int]] = {entry: [] for entry in ENTRIES}
    used: set[Entry] = set()
    with pytest.MonkeyPatch.context() as patch:
        for front, row in [*TRANSITIONS.items()]:
            patch.setitem(TRANSITIONS, front, _Watched(front, row, used))
        for seed in range(LOOKED):
            used.clear()
            campaign([seed])
            for entry in used:
                seeds[entry].append(seed)
    return seeds


def _go_through(entry: Entry, seeds_of: dict[Entry, list[int]]) -> None:
    """Has an entry of the table used in all ways there are."""
    campaign(seeds_of[entry])
    if entry in SCRIPTS:
        SCRIPTS[entry]()
    elif not seeds_of[entry]:
        pytest.fail(f"no run uses {entry}: write a script that does")


WRONG = [
    (front, event, wrong)
    for front, event in ENTRIES
    for wrong in Front
    if wrong is not TRANSITIONS[front][event] and (front, event, wrong) not in HARMLESS
]


@pytest.mark.parametrize(
    ("front", "event", "wrong"), WRONG, ids=["-".join(one.name for one in entry) for entry in WRONG]
)
def test_a_wrong_entry_is_noticed(
    front: Front,
    event: Event,
    wrong: Front,
    seeds_of: dict[Entry, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With any other state in an entry of the table, a run has a wrong account, or cannot go on."""
    monkeypatch.setitem(TRANSITIONS[front], event, wrong)
    with pytest.raises((Violation, ImpossibleEvent)) as noticed:
        _go_through((front, event), seeds_of)
    if isinstance(noticed.value, ImpossibleEvent):
        # Where something is done to a batch in that state that cannot be done to it.
        assert str(noticed.value).endswith(f"of a batch that is {wrong.name}")


@pytest.mark.parametrize("entry", SCRIPTS, ids=lambda entry: "-".join(one.name for one in entry))
def test_a_script_goes_through_with_the_right_entry(entry: Entry) -> None:
    """What notices a wrong entry notices nothing else."""
    SCRIPTS[entry]()


@pytest.mark.parametrize("paused", [None, "refused"])
def test_another_batch_begins_when_one_is_withdrawn(paused: str | None) -> None:
    """Nothing is left of where a batch stood that was withdrawn: the next one is sealed first."""
    ledger = _taken_over(paused)
    ledger.dropped([1], sealed=True)
    assert ledger.recorded.front is Front.NONE
    assert not ledger.recorded.items


def test_what_is_withdrawn_on_its_way_takes_nothing_along() -> None:
    """The answer to a batch that was withdrawn meanwhile leaves what was accepted since."""
    ledger = _taken_over(None)
    first = held("msg_1", "before")
    assert listed(ledger, first, reached_start=False) == 0
    ledger.sealed([Row(1, outgoing("a"), True, 0.0)], 1, [])
    batch = ledger.recorded
    ledger.sending(batch)
    ledger.dropped([1], sealed=True)
    ledger.accepted([Row(2, outgoing("b"), False, 0.0)], [], idle=False)
    ledger.applied(batch, [held("msg_2", "a")], VERBATIM)
    assert [entry.seq for entry in ledger.queue.entries] == [2]
    _is_next(ledger, ledger.recorded, Seal)


def test_what_is_harmless_is_in_the_table() -> None:
    """The list of wrong entries that nobody can notice names entries, and states that are wrong."""
    for front, event, wrong in HARMLESS:
        assert TRANSITIONS[front][event] is not wrong


@pytest.mark.parametrize("front", Front)
def test_an_impossible_event_is_an_error(front: Front) -> None:
    """What cannot happen to a batch is an error that names both, and leaves the batch as it is."""
    for event in Event:
        if event not in TRANSITIONS[front]:
            batch = Batch(Promise.RECORDED)
            batch.front = front
            with pytest.raises(ImpossibleEvent, match=f"^{event.name} .* {front.name}$"):
                batch.fire(event)
            assert batch.front is front


def test_an_answer_that_comes_twice_is_an_error() -> None:
    """An answer to a request that is not out is no state of any batch."""
    ledger = _appending("a")
    ledger.sending(ledger.own)
    ledger.applied(ledger.own, [held("msg_1", "a")], VERBATIM)
    with pytest.raises(ImpossibleEvent, match=r"^APPLIED of a batch that is NONE$"):
        ledger.applied(ledger.own, [held("msg_1", "a")], VERBATIM)


# Items that are sent under an id of their own


def named(text: str) -> bytes:
    """A message as it is sent under an id of its own, which the server keeps."""
    return json.dumps({**message(text), "id": f"msg_{text}"}).encode()


def _lost(ledger: Ledger) -> None:
    """The own batch is sent once more, and no answer comes."""
    if ledger.own.front is Front.NONE:
        ledger.sealed_own()
    ledger.sending(ledger.own)
    ledger.lost(expires=100.0)


def test_a_late_copy_that_was_removed_does_not_hide_the_item() -> None:
    """An item that lands after a late copy of the same id was removed is found."""
    ledger, first = Ledger("conv_1", threading.Lock()), held("msg_0", "before")
    ledger.known = History([first], complete=True)
    ledger.take_own((named("a"),))
    for _ in range(2):
        _lost(ledger)
        assert listed(ledger, first, reached_start=True) == 0
    listed(ledger, first, held("msg_a", "a"), reached_start=True)
    assert ledger.watch.extra == ["msg_a"]
    ledger.removed_copy("msg_a")
    _lost(ledger)
    assert listed(ledger, first, held("msg_a", "a"), reached_start=True) == 1


def test_a_late_copy_of_an_item_that_was_popped_is_removed() -> None:
    """What was popped does not come back with a late copy, though its id is the same."""
    ledger, first = Ledger("conv_1", threading.Lock()), held("msg_0", "before")
    ledger.known = History([first], complete=True)
    ledger.take_own((named("a"),))
    _lost(ledger)
    assert listed(ledger, first, reached_start=True) == 0
    _lost(ledger)
    assert listed(ledger, first, held("msg_a", "a"), reached_start=True) == 1
    ledger.removing("msg_a")
    ledger.answered()
    ledger.removed_newest()
    listed(ledger, first, held("msg_a", "a"), reached_start=True)
    assert ledger.watch.extra == ["msg_a"]


def test_a_part_of_a_batch_is_told_by_its_ids() -> None:
    """Of a batch of which the first items landed, these are known by their ids."""
    ledger = Ledger("conv_1", threading.Lock())
    ledger.known = History(complete=True)
    ledger.take_own((named("a"), named("b"), named("c")))
    _lost(ledger)
    assert listed(ledger, held("msg_a", "a"), held("msg_b", "b"), reached_start=True) == 2


def test_what_was_a_late_copy_is_wanted_when_it_is_sent_again() -> None:
    """An item that an answer shows is not removed for a late copy that had its id before.

    A process that takes over finds the late copy noted. The one before has removed it.
    """
    ledger = _taken_over(None)
    first = held("msg_1", "before")
    ledger.known = History([first], complete=False)
    ledger.watch.extra.append("msg_a")
    ledger.recorded.items = (named("a"),)
    ledger.recorded.front = Front.SEALED
    ledger.sending(ledger.recorded)
    ledger.applied(ledger.recorded, [held("msg_a", "a")], VERBATIM)
    assert ledger.watch.extra == []
