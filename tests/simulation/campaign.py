"""Runs the campaign: `python -m tests.simulation.campaign --seeds 1000 --start 0`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable

from simloop import SimLoop

from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.outbox_world import OutboxWorld
from tests.simulation.world import Setting, World


class Failure(AssertionError):
    """A seed that breaks an invariant, with the command that replays it."""

    def __init__(
        self, seed: int, error: BaseException, trace: list[str], *, options: str = ""
    ) -> None:
        super().__init__(
            f"seed {seed}: {error}\nreplay: python -m tests.simulation.campaign "
            f"--seeds 1 --start {seed} --trace{options}"
        )
        self.seed = seed
        self.trace = trace


def _freeze(runs: list[int] = [0]) -> None:  # noqa: B006 - counts the process's runs
    # The loop collects garbage at the end of every run, to see what is left
    # over. What was there before the first two, which import what is imported
    # late, need not be looked at every time.
    if runs[0] < 2:
        gc.freeze()
        runs[0] += 1


def run_seed(
    seed: int, setting: Setting | OutboxSetting | None = None, *, outbox: bool = False
) -> Counter[str]:
    """Runs one seed and returns what happened in it.

    Args:
        seed: The seed.
        setting: What the run is like; None: as drawn from the seed.
        outbox: Whether it is a run with the outbox, if `setting` does not say.

    Raises:
        Failure: An invariant does not hold.
    """
    _freeze()
    if setting is None:
        setting = OutboxSetting.draw(seed) if outbox else Setting.draw(seed)
    outbox = isinstance(setting, OutboxSetting)
    loop = SimLoop(seed)
    # The loop raises what a callback raised when it stops: nothing is lost.
    world: World | None = None
    try:
        asyncio.set_event_loop(None)
        world = OutboxWorld(setting) if isinstance(setting, OutboxSetting) else World(setting)
        loop.run_until_complete(world.run())
    except (Exception, ExceptionGroup) as error:
        _drain(loop)
        trace = [] if world is None else world.network.trace
        base = setting.base if isinstance(setting, OutboxSetting) else setting
        rewriting = base.habits.rewrites
        options = f"{' --outbox' if outbox else ''}{' --rewriting' if rewriting else ''}"
        raise Failure(seed, error, trace, options=options) from error
    finally:
        loop.close()
    world.tally["requests"] = len(world.network.trace)
    return world.tally


def _drain(loop: SimLoop) -> None:
    """Ends what a failed run left lying, so that only its failure is reported."""

    async def end() -> None:
        # Some clean up in several steps, or begin something new while they do.
        for _ in range(1000):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(0)

    # What it raises is the failed run's own.
    with contextlib.suppress(Exception):
        loop.run_until_complete(end())


def run(
    seeds: Iterable[int],
    *,
    outbox: bool = False,
    draw: Callable[[int], Setting] | None = None,
) -> Counter[str]:
    """Runs seeds one after the other and adds up what happened.

    Args:
        seeds: The seeds.
        outbox: Whether they are runs with the outbox.
        draw: What a seed's run is like; None: as drawn from the seed.
    """
    tally: Counter[str] = Counter()
    for seed in seeds:
        setting = None if draw is None else draw(seed)
        tally.update(run_seed(seed, setting, outbox=outbox))
        tally["seeds"] += 1
    return tally


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--trace", action="store_true", help="print the requests of a failure")
    parser.add_argument("--keep-going", action="store_true", help="count failures, do not stop")
    parser.add_argument("--outbox", action="store_true", help="the runs with the outbox")
    parser.add_argument("--rewriting", action="store_true", help="on servers that rewrite texts")
    arguments = parser.parse_args()
    if arguments.outbox and arguments.rewriting:
        parser.error("the account of the runs with the outbox knows no rewritten texts")
    tally: Counter[str] = Counter()
    for seed in range(arguments.start, arguments.start + arguments.seeds):
        try:
            setting = Setting.rewriting(seed) if arguments.rewriting else None
            tally.update(run_seed(seed, setting, outbox=arguments.outbox))
        except Failure as failure:
            tally["failures"] += 1
            print(failure, file=sys.stderr, flush=True)
            if arguments.trace:
                traceback.print_exception(failure.__cause__)
                print("\n".join(failure.trace), file=sys.stderr)
            if not arguments.keep_going:
                return 1
        tally["seeds"] += 1
    for name, count in sorted(tally.items()):
        print(f"{name:32} {count}")
    return 1 if tally["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
