"""Plays rounds of processes, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from tests.campaigns.account import Violation
from tests.campaigns.plan import Failure
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.crashes.world import World


def play(
    plan: Round, nursery: Nursery, ablation: str | None = None, database: str | None = None
) -> Counter[str]:
    """Plays a round and returns what happened in it.

    Args:
        plan: What it is like.
        nursery: Where its processes come from.
        ablation: A safeguard that is switched off in them, or None.
        database: The address of an empty one that they share, or None: they share a file.

    Raises:
        Failure: A promise was not kept.
    """
    world = World(plan, nursery, ablation, database)
    try:
        world.run()
    except (Violation, RuntimeError) as error:
        more = "" if ablation is None else f" --ablation {ablation}"
        raise Failure(plan, error, world.trace, more) from error
    return world.tally


def kill(
    kills: int, start: int, nursery: Nursery, new_database: Callable[[], str | None] = lambda: None
) -> Counter[str]:
    """Plays rounds until so many processes were killed, and returns what happened.

    Args:
        kills: How many.
        start: The first seed.
        nursery: Where the processes come from.
        new_database: Makes a database for a round; None: it has a file.
    """
    tally: Counter[str] = Counter()
    while tally["kills"] < kills:
        plan = Round.draw(start + tally["seeds"])
        database = new_database()
        if database is not None:
            plan = plan.later(4)
        tally.update(play(plan, nursery, database=database))
    return tally
