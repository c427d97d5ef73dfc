"""Plays rounds of processes, one after the other."""

from __future__ import annotations

from collections import Counter

from tests.campaigns.account import Violation
from tests.campaigns.plan import Failure
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.crashes.world import World


def play(plan: Round, nursery: Nursery, ablation: str | None = None) -> Counter[str]:
    """Plays a round and returns what happened in it.

    Args:
        plan: What it is like.
        nursery: Where its processes come from.
        ablation: A safeguard that is switched off in them, or None.

    Raises:
        Failure: A promise was not kept.
    """
    world = World(plan, nursery, ablation)
    try:
        world.run()
    except (Violation, RuntimeError) as error:
        more = "" if ablation is None else f" --ablation {ablation}"
        raise Failure(plan, error, world.trace, more) from error
    return world.tally


def kill(kills: int, start: int, nursery: Nursery) -> Counter[str]:
    """Plays rounds until so many processes were killed, and returns what happened."""
    tally: Counter[str] = Counter()
    while tally["kills"] < kills:
        tally.update(play(Round.draw(start + tally["seeds"]), nursery))
    return tally
