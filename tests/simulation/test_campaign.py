"""Campaigns in virtual time from fresh seeds, with and without an outbox, and the ablations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import pytest

pytest.importorskip("simloop", reason="the simulation needs simloop, and so Python 3.12 or later")

from tests.campaigns.ablations import BEGIN, Ablation, in_plans, missed
from tests.campaigns.plan import fresh, summary
from tests.postgres import Server, missing, server
from tests.simulation.campaign import play
from tests.simulation.fleet_setting import FleetSetting
from tests.simulation.fleet_tables import Tables
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.world import Setting

# How many operations a CI run makes, from seeds that no run had before.
OPERATIONS = int(os.environ.get("CAMPAIGN_OPERATIONS", "21000"))
OUTBOX_OPERATIONS = int(os.environ.get("OUTBOX_CAMPAIGN_OPERATIONS", "11500"))

# The same with fleets, of which one takes a second or two. With the variable from fresh seeds;
# without it the same few each time, which show what a change breaks.
FLEET_OPERATIONS = int(os.environ.get("FLEET_CAMPAIGN_OPERATIONS", "0"))

Tell = Callable[[str], None]


@pytest.fixture(scope="module")
def engine() -> Iterator[Server]:
    """A server that no other test uses."""
    why = missing()
    if why is not None:
        pytest.skip(why)
    with server() as found:
        yield found


def _campaign(
    name: str,
    draw: Callable[[int], Setting],
    operations: float,
    tell: Tell,
    tables: Tables | None = None,
    start: int | None = None,
) -> Counter[str]:
    tally: Counter[str] = Counter()
    start = fresh(name, tell) if start is None else start
    while tally["operations"] < operations:
        tally.update(play(draw(start + tally["seeds"]), tables))
    tell(f"{name}: {summary(tally)}")
    return tally


def test_fresh_seeds_keep_every_invariant(tell: Tell) -> None:
    """Random operations under all fault kinds lose nothing, double nothing, and read the truth."""
    tally = _campaign("campaign", Setting.draw, OPERATIONS, tell)
    assert tally["append done"] > 0.3 * OPERATIONS
    assert tally["read done"] > 0.3 * OPERATIONS


def test_servers_that_rewrite_texts(tell: Tell) -> None:
    """Where a server rewrites texts, nothing stands there twice unless somebody was told."""
    name = "campaign on servers that rewrite texts"
    tally = _campaign(name, Setting.rewriting, OPERATIONS / 4, tell)
    unknown, suspected = tally["append unknown"], tally["event LateCopySuspected"]
    tell(f"{name}: {unknown} unknown appends, {suspected} suspected later")
    assert tally["append done"] > 0.3 * OPERATIONS / 4
    # What answers have shown is used: far from every lost answer stays unknown.
    assert tally["event Reconciled"] > unknown


def test_fresh_seeds_with_an_outbox_keep_every_invariant(tell: Tell) -> None:
    """Through crashes and all fault kinds, what was accepted arrives once, in order."""
    tally = _campaign("outbox campaign", OutboxSetting.draw, OUTBOX_OPERATIONS, tell)
    tell(f"outbox campaign: {tally['crashes']} crashes")
    assert tally["append done"] > 0.25 * OUTBOX_OPERATIONS
    assert tally["read done"] > 0.25 * OUTBOX_OPERATIONS
    assert tally["crashes"] > 0.02 * OUTBOX_OPERATIONS


@pytest.mark.parametrize(
    "draw",
    [FleetSetting.draw, FleetSetting.web, FleetSetting.asleep, FleetSetting.unanswered],
    ids=["anything", "web", "asleep", "unanswered"],
)
def test_fleets_keep_every_invariant(
    draw: Callable[[int], FleetSetting], engine: Server, tell: Tell
) -> None:
    """With an engine that crashes and owners that sleep, what was accepted arrives once."""
    name = f"fleet campaign, {draw(0).name}"
    operations, start = (FLEET_OPERATIONS, None) if FLEET_OPERATIONS else (300, 0)
    tally = _campaign(name, draw, operations, tell, Tables(engine), start)
    done = tally["append done"] + tally["read done"]
    tell(f"{name}: {tally['crashes']} processes and {tally['engine crashes']} engines crashed")
    assert done > 0.3 * operations


@pytest.mark.parametrize(("ablation", "draw", "violation"), in_plans("virtual"))
def test_every_safeguard_is_missed(
    ablation: Ablation,
    draw: Callable[[int], Setting],
    violation: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one safeguard switched off, the account shows what that safeguard prevents."""
    ablation(monkeypatch)
    seeds = range(BEGIN.get(ablation, 0), 1500)
    missed(ablation, violation, (partial(play, draw(seed)) for seed in seeds))


@pytest.mark.parametrize(("ablation", "draw", "violation"), in_plans("fleet"))
def test_every_safeguard_of_a_fleet_is_missed(
    ablation: Ablation,
    draw: Callable[[int], FleetSetting],
    violation: str,
    engine: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one safeguard of a fleet switched off, the account shows what it prevents."""
    ablation(monkeypatch)
    tables = Tables(engine)
    missed(ablation, violation, (partial(play, draw(seed), tables) for seed in range(300)))
