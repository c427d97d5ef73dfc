"""Plays rounds of processes, one after the other, or several at once."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.campaigns.account import Violation
from tests.campaigns.plan import Failure
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.crashes.world import World
from tests.takeovers import Delay


def play(
    plan: Round,
    nursery: Nursery,
    ablation: str | None = None,
    database: str | None = None,
    delays: list[Delay] | None = None,
) -> Counter[str]:
    """Plays a round and returns what happened in it.

    Args:
        plan: What it is like.
        nursery: Where its processes come from.
        ablation: A safeguard that is switched off in them, or None.
        database: The address of an empty one that they share, or None: they share a file.
        delays: Takes how long others waited, in a database, until they went on for dead ones.

    Raises:
        Failure: A promise was not kept.
    """
    world = World(plan, nursery, ablation, database)
    try:
        world.run()
    except (Violation, RuntimeError) as error:
        more = "" if ablation is None else f" --ablation {ablation}"
        raise Failure(plan, error, world.trace, more) from error
    if delays is not None:
        delays += world.delays
    return world.tally


def kill(
    kills: int,
    start: int,
    nurseries: Sequence[Nursery],
    draw: Callable[[int], Round] = Round.draw,
    new_database: Callable[[], str | None] = lambda: None,
) -> tuple[Counter[str], list[Delay]]:
    """Plays rounds until so many processes were killed.

    Args:
        kills: How many.
        start: The first seed.
        nurseries: Where the processes come from; each has one round at a time.
        draw: Makes the round of a seed.
        new_database: Makes a database for a round; None: it has a file.

    Returns:
        What happened, and how long others waited until they went on for dead ones.

    Raises:
        Failure: A promise was not kept.
    """
    tally: Counter[str] = Counter()
    delays: list[Delay] = []
    seeds, lock, failed = itertools.count(start), threading.Lock(), threading.Event()

    def one_after_the_other(nursery: Nursery) -> None:
        while tally["kills"] < kills and not failed.is_set():
            with lock:
                seed = next(seeds)
            waited: list[Delay] = []
            try:
                happened = play(draw(seed), nursery, database=new_database(), delays=waited)
            except BaseException:
                failed.set()
                raise
            with lock:
                tally.update(happened)
                delays.extend(waited)

    with ThreadPoolExecutor(len(nurseries)) as pool:
        for ended in [pool.submit(one_after_the_other, nursery) for nursery in nurseries]:
            ended.result()
    return tally, delays
