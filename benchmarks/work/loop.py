"""`loop`: Runner loops by length, tool calls and latency, with a scripted model."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import AsyncIterator, Callable

from agents import Agent, RunConfig, Runner, function_tool
from agents.items import TResponseOutputItem
from agents.memory import Session, SessionSettings
from agents.testing import ScriptedModel, assistant_message, function_call

from benchmarks.harness import Bench, Work, amounts, count, numbers, shares
from benchmarks.kinds import Kind
from benchmarks.results import Figure
from benchmarks.sites import Counter, Site
from benchmarks.timing import Taken, percentile

# Runs, tool calls, latency. A grid of short loops, and one long loop without
# latency: with it, the SDK's session would take a quarter of an hour.
_CASES = [*itertools.product([30], [0, 1, 5], [0.0, 0.005, 0.05, 0.2]), (400, 1, 0.0)]

_GOODS = ("lanterns", "tents", "ropes", "stoves", "kettles", "maps", "axes")


@function_tool
def stock(item: str) -> str:
    """Says how many of an item the warehouse holds.

    Args:
        item: The item's name.
    """
    return f"{7 + 3 * len(item)} {item} in stock"


async def run_loop(
    session: Session,
    *,
    runs: int,
    tools: int = 1,
    limit: int | None = None,
    failures: tuple[type[Exception], ...] = (),
    after_run: Callable[[], None] = lambda: None,
) -> Taken:
    """Asks an agent one question a run, all on one session.

    Args:
        session: Where the history is kept.
        runs: How many runs.
        tools: Tool calls in each run, one after the other.
        limit: How many of the newest items the model is given; None: all.
        failures: Exceptions after which the next run begins.
        after_run: Called after each run.

    Returns:
        What each run took, the scripted model included.
    """
    taken = Taken()
    config = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=limit))
    for run in range(runs):
        agent = Agent(
            name="Warehouse",
            instructions="You look after a warehouse. Use the tools. Answer in one sentence.",
            tools=[stock],
            # A new model each time: one model keeps a copy of every input it was
            # given, and the loop would measure that as well.
            model=ScriptedModel(_script(run, tools)),
        )
        with taken.call():
            try:
                await Runner.run(agent, _question(run), session=session, run_config=config)
            except failures:
                taken.failed += 1
        after_run()
    return taken


async def loop_on(
    kind: Kind,
    site: Site,
    *,
    runs: int,
    tools: int = 1,
    limit: int | None = None,
    after_run: Callable[[], None] = lambda: None,
) -> Taken:
    """The same on a new session of a kind, with the requests that all runs together sent."""
    counter = Counter()
    async with kind.shelf(site, counter) as make:
        taken = await run_loop(make(), runs=runs, tools=tools, limit=limit, after_run=after_run)
        taken.requests.append(counter.requests)
    return taken


async def bare_loop(session: Session, runs: int) -> Taken:
    """What a session is given to append in a loop with one tool call a run, and nothing else."""
    taken = Taken()
    for run in range(runs):
        call = f"call_{run}"
        batches = [
            [{"role": "user", "content": _question(run)}],
            [
                {"type": "function_call", "call_id": call, "name": "stock", "arguments": "{}"},
                {"type": "function_call_output", "call_id": call, "output": "31 lanterns in stock"},
            ],
            [{"role": "assistant", "content": f"Answer {run}: there are plenty."}],
        ]
        with taken.call():
            for batch in batches:
                await session.add_items(batch)  # type: ignore[arg-type]  # as the server takes them
    return taken


def _question(run: int) -> str:
    """What is asked in a run; no two runs ask the same."""
    return f"Question {run}: how many {_GOODS[run % len(_GOODS)]} are there?"


def _script(run: int, tools: int) -> list[list[TResponseOutputItem]]:
    """What the model says in a run: its tool calls, then its answer."""
    goods = _GOODS[run % len(_GOODS)]
    calls = [
        [function_call("stock", {"item": goods}, call_id=f"call_{run}_{call}")]
        for call in range(tools)
    ]
    return [*calls, [assistant_message(f"Answer {run}: there are plenty.")]]


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=amounts, help="runs of the agent, 1 to 400 (30, and 400)")
    parser.add_argument("--tools", type=numbers, help="tool calls in each run (0,1,5)")
    parser.add_argument("--latency", type=shares, help="seconds a request (0,0.005,0.05,0.2)")


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    cases = _CASES
    if options.runs or options.tools or options.latency:
        cases = list(
            itertools.product(
                options.runs or [30], options.tools or [0, 1, 5], options.latency or [0.0, 0.05]
            )
        )
    if bench.sites.foreign:
        cases = list(dict.fromkeys((runs, tools, 0.0) for runs, tools, _ in cases))
    for (runs, tools, latency), kind in itertools.product(cases, bench.kinds):
        workload = (
            f"{count(runs, 'run')} with {count(tools, 'tool call')} each, {bench.at(latency)}, "
            "scripted model"
        )
        with bench.measuring(f"loop: {kind.name}, {workload}", runs) as step:
            taken = await loop_on(
                kind, bench.sites.at(latency), runs=runs, tools=tools, after_run=step
            )
        tenth = max(1, runs // 10)
        yield Figure(
            "loop",
            workload,
            kind.name,
            {"runs": runs, "tools": tools, **bench.where(latency)},
            {
                "total s": taken.total,
                "requests": sum(taken.requests),
                "CPU s": taken.total_cpu,
                "run p50 ms": percentile(taken.seconds, 50) * 1e3,
                "run p95 ms": percentile(taken.seconds, 95) * 1e3,
                "first tenth p50 ms": percentile(taken.seconds[:tenth], 50) * 1e3,
                "last tenth p50 ms": percentile(taken.seconds[-tenth:], 50) * 1e3,
            },
            {"run ms": [seconds * 1e3 for seconds in taken.seconds]},
        )


WORK = Work("loop", "Runner loops by length, tool calls and latency", _options, _run)
