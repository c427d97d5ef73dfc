"""Processes that share an outbox file, killed at random moments before a server with faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest

from tests.campaigns.ablations import Ablation, in_plans, missed
from tests.campaigns.account import Call, Violation
from tests.campaigns.plan import fresh, summary
from tests.crashes.account import Told, explained
from tests.crashes.campaign import kill, play
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.postgres import Server
from tests.takeovers import part, told

CAMPAIGN = pytest.mark.campaign

KILLS = 75
"""About ten seconds. `python -m tests.crashes.campaign --kills 2000` is the long one."""

FLEET_KILLS = int(os.environ.get("FLEET_KILLS", "8"))
"""Each takeover takes a lease, so several rounds are played at once. More by `FLEET_KILLS=2000`."""

FLEETS = int(os.environ.get("FLEETS", "3"))
"""How many rounds."""

SOON = 1.0
"""Seconds after the end of a dead process's lease in which another one has gone on."""

PATIENCE = 200
"""Rounds in which a safeguard that is switched off has to be missed."""


@CAMPAIGN
def test_killed(nursery: Nursery, tell: Callable[[str], None]) -> None:
    """What was accepted is on the server once and in order, whenever processes are killed."""
    tally, _ = kill(KILLS, fresh("crashes", tell), [nursery])
    told = f"{tally['kills']} kills, {tally['items accepted']} items"
    tell(f"crashes: {summary(tally)}, {told}")
    assert tally["items accepted"] > 0
    assert (tally["lost"], tally["doubled"]) == (0, 0)


@CAMPAIGN
def test_killed_in_a_fleet(nursery: Nursery, postgres: Server, tell: Callable[[str], None]) -> None:
    """So it is where they share a database; others go on when the leases of the dead are over."""
    start = fresh("crashes in a fleet", tell)
    with ExitStack() as stack:
        more = [stack.enter_context(Nursery()) for _ in range(FLEETS - 1)]
        tally, delays = kill(
            FLEET_KILLS, start, [nursery, *more], Round.in_a_fleet, postgres.with_tables
        )
    counted = f"{tally['kills']} kills, {tally['items accepted']} items"
    tell(f"crashes in a fleet: {summary(tally)}, {counted}; {told(delays)}")
    assert tally["items accepted"] > 0
    assert (tally["lost"], tally["doubled"]) == (0, 0)
    # A machine that is short of time lets single ones wait longer.
    assert len(delays) < 10 or part([delay.free for delay in delays], 0.9) <= SOON


@CAMPAIGN
def test_killed_amid_removals(nursery: Nursery) -> None:
    """A process killed half way through deleting a late copy leaves the rest to the next one."""
    removed = 0
    for seed in range(2):
        removed += play(Round.amid_removals(seed), nursery)["late copy removed"]
    assert removed > 0


@CAMPAIGN
@pytest.mark.parametrize(("ablation", "draw", "violation"), in_plans("processes"))
def test_every_safeguard_is_missed(
    ablation: Ablation, draw: Callable[[int], Round], violation: str, nursery: Nursery
) -> None:
    """With one safeguard switched off in all processes, the account shows what it prevents."""
    plans = map(draw, range(1000, 1000 + PATIENCE))
    missed(ablation, violation, (partial(play, plan, nursery, ablation.__name__) for plan in plans))


CALLS = [Call(("a", "b")).returns(), Call(("c", "d"))]


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
    others = [Call(("x",)).returns(), Call(("y", "z")).returns()]
    mixed = ["old", "x", "a", "b", "y", "z"]
    assert explained(mixed, ["old"], [[CALLS, others]], whole=True)
    assert not explained(["old", "y", "z", "a", "b", "x"], ["old"], [[CALLS, others]], whole=True)
    assert explained(mixed[-4:], ["old"], [[CALLS, others]], whole=False)
    assert not explained(["a", "z"], ["old"], [[CALLS, others]], whole=False)


def _accounted(*names: str, ids: str) -> Told:
    """An account of processes of which the first has read "ab" and a copy of it, with these ids."""
    account = Told()
    first = account.begins(*names)[0]
    account.hear(first, [["about", ["a", "b"]], ["returned"], ["read", None, [*"abab"], [*ids]]])
    return account


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
