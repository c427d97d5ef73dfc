"""Runs a campaign: `python -m tests.crashes.campaign --start SEED --kills 2000`."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

from cached_session.emulator import FaultKind
from tests.crashes.ablations import ABLATIONS
from tests.crashes.account import Violation
from tests.crashes.nursery import Nursery
from tests.crashes.plan import Round
from tests.crashes.world import World


class Failure(AssertionError):
    """A seed in which a promise was not kept, with the command that replays its plan."""

    def __init__(self, world: World, error: BaseException, options: str) -> None:
        seed = world.plan.seed
        super().__init__(
            f"seed {seed}: {error}\nreplay (the same plan, other timing): "
            f"python -m tests.crashes.campaign --start {seed} --seeds 1 --times 20{options}"
        )
        self.world = world


def play(
    plans: Iterable[Round], nursery: Nursery, ablation: str | None = None, options: str = ""
) -> Iterator[World]:
    """Plays rounds, one after the other.

    Args:
        plans: What they are like.
        nursery: Where their processes come from.
        ablation: A safeguard that is switched off in them, or None.
        options: What the command that replays one needs beside the seed.

    Raises:
        Failure: A promise was not kept.
    """
    options += "" if ablation is None else f" --ablation {ablation}"
    for plan in plans:
        world = World(plan, nursery, ablation)
        try:
            world.run()
        except (Violation, RuntimeError) as error:
            raise Failure(world, error, options) from error
        yield world


def kill(kills: int, start: int, nursery: Nursery) -> Counter[str]:
    """Plays rounds until so many processes were killed, and returns what happened."""
    tally: Counter[str] = Counter()
    for world in play(map(Round.draw, count(start)), nursery):
        tally.update(world.tally)
        tally.update(rounds=1, restarts=world.tally["processes"] - 1)
        if tally["kills"] >= kills:
            break
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=int, default=random.randrange(1 << 40))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--kills", type=int, default=100)
    length.add_argument("--seeds", type=int, help="so many rounds")
    parser.add_argument("--times", type=int, default=1, help="play each of the seeds so often")
    parser.add_argument(
        "--ablation", choices=list(ABLATIONS), help="a safeguard that is switched off"
    )
    parser.add_argument("--only", default="", help="kinds of fault, with commas between them")
    parser.add_argument("--removals", action="store_true", help="kill amid removals of late copies")
    parser.add_argument("--keep-going", action="store_true", help="go on after a failure")
    parser.add_argument("--trace", action="store_true", help="print the requests of a failure")
    arguments = parser.parse_args()
    only = [FaultKind(name) for name in arguments.only.split(",") if name]
    options = f" --only {arguments.only}" if only else ""
    options += " --removals" if arguments.removals else ""
    tally: Counter[str] = Counter()
    seeds: Iterable[int] = count(arguments.start)
    if arguments.seeds is not None:
        seeds = range(arguments.start, arguments.start + arguments.seeds)
    began = time.monotonic()
    with Nursery() as nursery:
        for seed in (seed for seed in seeds for _ in range(arguments.times)):
            plan = (Round.amid_removals if arguments.removals else Round.draw)(seed)
            plan = plan.with_only(only) if only else plan
            try:
                (world,) = play([plan], nursery, arguments.ablation, options)
            except Failure as failure:
                tally["failures"] += 1
                world = failure.world
                sys.stdout.write(f"{failure}\n")
                if arguments.trace:
                    sys.stdout.write("\n".join(map(str, world.emulator.requests)) + "\n")
                sys.stdout.flush()
                if not arguments.keep_going:
                    break
            tally.update(world.tally)
            tally.update(rounds=1, restarts=world.tally["processes"] - 1)
            if arguments.seeds is None and tally["kills"] >= arguments.kills:
                break
    tally["seconds"] = round(time.monotonic() - began)
    for name, number in sorted({"lost": 0, "doubled": 0, **tally}.items()):
        sys.stdout.write(f"{name:32} {number}\n")
    return 1 if tally["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
