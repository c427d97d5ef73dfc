"""A loop of Runner runs on one session, with a scripted model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agents import Agent, RunConfig, Runner, function_tool
from agents.items import TResponseOutputItem
from agents.memory import Session, SessionSettings
from agents.testing import ScriptedModel, assistant_message, function_call

from benchmarks.timing import Stopwatch

_GOODS = ("lanterns", "tents", "ropes", "stoves", "kettles", "maps", "axes")


@function_tool
def stock(item: str) -> str:
    """Says how many of an item the warehouse holds.

    Args:
        item: The item's name.
    """
    return f"{7 + 3 * len(item)} {item} in stock"


@dataclass(slots=True)
class Loop:
    """What the runs of a loop took.

    Attributes:
        seconds: Each run, the scripted model included.
        cpu: CPU seconds of each run.
        failed: How many runs ended with an exception.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def total(self) -> float:
        """Seconds of all runs together."""
        return sum(self.seconds)

    @property
    def total_cpu(self) -> float:
        """CPU seconds of all runs together."""
        return sum(self.cpu)

    def __str__(self) -> str:
        return f"{self.total:.2f} s ({self.total_cpu:.2f} s CPU)"


async def run_loop(
    session: Session,
    *,
    runs: int,
    tools: int,
    limit: int | None = None,
    failures: tuple[type[Exception], ...] = (),
    after_run: Callable[[], None] = lambda: None,
) -> Loop:
    """Asks an agent one question a run, all on one session.

    Args:
        session: Where the history is kept.
        runs: How many runs.
        tools: Tool calls in each run, one after the other.
        limit: How many of the newest items the model is given; None: all.
        failures: Exceptions after which the next run begins.
        after_run: Called after each run.
    """
    loop = Loop()
    config = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=limit))
    for run in range(runs):
        # A new model each time: one model keeps a copy of every input it was
        # given, and the loop would measure that as well.
        agent = Agent(
            name="Warehouse",
            instructions="You look after a warehouse. Use the tools. Answer in one sentence.",
            tools=[stock],
            model=ScriptedModel(script(run, tools)),
        )
        with Stopwatch() as watch:
            try:
                await Runner.run(agent, question(run), session=session, run_config=config)
            except failures:
                loop.failed += 1
        loop.seconds.append(watch.seconds)
        loop.cpu.append(watch.cpu)
        after_run()
    return loop


def question(run: int) -> str:
    """What is asked in a run; no two runs ask the same."""
    return f"Question {run}: how many {_GOODS[run % len(_GOODS)]} are there?"


def script(run: int, tools: int) -> list[list[TResponseOutputItem]]:
    """What the model says in a run: its tool calls, then its answer."""
    calls = [
        [function_call("stock", {"item": _GOODS[run % len(_GOODS)]}, call_id=f"call_{run}_{call}")]
        for call in range(tools)
    ]
    return [*calls, [assistant_message(f"Answer {run}: there are plenty.")]]
