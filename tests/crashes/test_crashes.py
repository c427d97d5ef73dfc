"""Processes that share an outbox file, killed at random moments before a server with faults."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable

import pytest

from cached_session.emulator import FaultKind
from tests.crashes.account import Account, Call, Process, Violation, explained
from tests.crashes.campaign import Failure, kill, play
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round

CAMPAIGN = pytest.mark.campaign

KILLS = 60
"""About ten seconds. `python -m tests.crashes.campaign --kills 2000` is the long one."""

FAILED_ONCE = (1008, 5001, 5106, 30174)
"""Seeds of rounds in which a promise was broken while this was made."""

PATIENCE = 200
"""Rounds in which a safeguard that is switched off has to be missed."""

LOST_ANSWERS = (
    FaultKind.LATE_COMMIT,
    FaultKind.RESET_AFTER_COMMIT,
    FaultKind.RESET_BEFORE_COMMIT,
)


@CAMPAIGN
def test_killed(nursery: Nursery, tell: Callable[[str], None]) -> None:
    """What was accepted is on the server once and in order, whenever processes are killed."""
    start = secrets.randbelow(1 << 40)
    tell(f"crashes, seeds from {start}")
    tally = kill(KILLS, start, nursery)
    tell(
        f"crashes: {tally['kills']} kills in {tally['rounds']} rounds, "
        f"{tally['items accepted']} items, {tally['requests']} requests, {tally['faults']} faults"
    )
    assert tally["items accepted"] > 0
    assert (tally["lost"], tally["doubled"]) == (0, 0)


@CAMPAIGN
@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_failed_once(nursery: Nursery, seed: int) -> None:
    """The rounds that showed a bug once keep every promise."""
    assert len(list(play([Round.draw(seed)], nursery))) == 1


@CAMPAIGN
def test_killed_amid_removals(nursery: Nursery) -> None:
    """A process killed half way through deleting a late copy leaves the rest to the next one."""
    removed = 0
    for world in play(map(Round.amid_removals, range(2)), nursery):
        removed += world.tally["late copy removed"]
    assert removed > 0


def _missed(plans: Iterable[Round], nursery: Nursery, ablation: str) -> None:
    for plan in plans:
        try:
            list(play([plan], nursery, ablation))
        except Failure as failure:
            cause, told = failure.__cause__, str(failure)
            # A worker that failed, or printed something, shows nothing of the account: without
            # its safeguard it may as well warn that a batch can't be told from another's.
            if isinstance(cause, Violation):
                assert re.search(r"[1-9]\d* doubled|: a read of ", str(cause)), told
                assert f"--ablation {ablation}" in told
                return
    pytest.fail(f"no promise was broken without {ablation}")


@CAMPAIGN
def test_without_doubt_restored(nursery: Nursery) -> None:
    """The campaign misses it if a successor does not know that a batch may have been sent."""
    plans = (Round.draw(seed).with_only(LOST_ANSWERS) for seed in range(1000, 1000 + PATIENCE))
    _missed(plans, nursery, "doubt_not_restored")


@CAMPAIGN
def test_without_seals(nursery: Nursery) -> None:
    """The campaign misses it if the file does not say which items may have been sent."""
    plans = (Round.draw(seed).with_only(LOST_ANSWERS) for seed in range(1000, 1000 + PATIENCE))
    _missed(plans, nursery, "not_sealed")


@CAMPAIGN
def test_without_watch(nursery: Nursery) -> None:
    """The campaign misses it if a batch that landed is not watched for its late copy."""
    plans = (Round.draw(seed).with_only(LOST_ANSWERS) for seed in range(1000, 1000 + PATIENCE))
    _missed(plans, nursery, "late_copies_not_watched")


@CAMPAIGN
def test_without_removals_recorded(nursery: Nursery) -> None:
    """The campaign misses it if the file does not say which late copies are being deleted."""
    plans = map(Round.amid_removals, range(PATIENCE))
    _missed(plans, nursery, "removals_not_recorded")


CALLS = [Call(("a", "b"), returned=True), Call(("c", "d"))]


@pytest.mark.parametrize(
    "listing", [["old", "a", "b"], ["old", "a", "b", "c", "d"]], ids=["not there", "there"]
)
def test_account_accepts(listing: list[str]) -> None:
    """A call that was cut off is there as a whole or not at all."""
    assert explained(listing, ["old"], [[CALLS]], whole=True)


@pytest.mark.parametrize(
    "listing",
    [
        ["old", "a"],
        ["old", "c", "d"],
        ["old", "a", "b", "c"],
        ["old", "a", "b", "a", "b"],
        ["old", "c", "d", "a", "b"],
        ["a", "b"],
        ["old", "a", "b", "x"],
    ],
    ids=["cut", "lost", "half", "doubled", "order", "old lost", "stranger"],
)
def test_account_refuses(listing: list[str]) -> None:
    """What is lost, cut, doubled, out of order or nobody's is noticed."""
    assert not explained(listing, ["old"], [[CALLS]], whole=True)


def test_account_of_two() -> None:
    """Calls of two processes at once mix, each process's in its order; a tail may begin inside."""
    others = [Call(("x",), returned=True), Call(("y", "z"), returned=True)]
    mixed = ["old", "x", "a", "b", "y", "z"]
    assert explained(mixed, ["old"], [[CALLS, others]], whole=True)
    assert not explained(["old", "y", "z", "a", "b", "x"], ["old"], [[CALLS, others]], whole=True)
    assert explained(mixed[-4:], ["old"], [[CALLS, others]], whole=False)
    assert not explained(["a", "z"], ["old"], [[CALLS, others]], whole=False)


def _accounted(*names: str, ids: str) -> Account:
    """An account of processes of which the first has read "ab" and a copy of it, with these ids."""
    processes = [Process(name) for name in names]
    processes[0].hear([["about", ["a", "b"]], ["returned"], ["read", None, [*"abab"], [*ids]]])
    return Account(phases=[processes])


def test_account_of_a_late_copy_beside_another() -> None:
    """Beside another process a read may show a late copy that is gone in the end."""
    for ids in ("1234", "3412"):
        account = _accounted("0a", "0b", ids=ids)
        account.check_reads()
        account.check_end(["a", "b"], {"1", "2"})


def test_account_of_what_is_no_late_copy() -> None:
    """What is there in the end was no late copy, and one half of it removed explains nothing."""
    for held in ({"1", "2", "3", "4"}, {"1", "2", "3"}, {"2"}, set[str]()):
        account = _accounted("0a", "0b", ids="1234")
        account.check_reads()
        with pytest.raises(Violation, match="a read of"):
            account.check_end(["a", "b"], held)


def test_account_of_a_late_copy_alone() -> None:
    """Where no other process runs, no late copy is another one's to remove."""
    account = _accounted("0a", ids="1234")
    with pytest.raises(Violation, match="a read of"):
        account.check_reads()
