"""`cached-session demo`: its options, and its two loops one after the other."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from agents import Model, OpenAIConversationsSession, OpenAIProvider
from agents.exceptions import AgentsException
from agents.testing import ModelScriptError, ScriptedModel
from openai import AsyncOpenAI, OpenAIError
from rich.console import Console
from rich.text import Text

from cached_session.commands.demo.comparison import histories_differ, inputs_differ
from cached_session.commands.demo.display import LoopProgress, results_table
from cached_session.commands.demo.loop import LoopResult, Place, run_loop
from cached_session.commands.demo.plots import draw_png, text_plot
from cached_session.commands.demo.scenario import questions, script
from cached_session.emulator import Emulator
from cached_session.errors import CachedSessionError
from cached_session.session.session import CachedSession

SDK, OURS = "OpenAIConversationsSession", "CachedSession"


class LoopsDiffer(Exception):
    """The two kinds of session did not come to the same."""


@dataclass(frozen=True, slots=True)
class _Setting:
    """Where the loops run, and with which model."""

    place: Place
    model: Model


def main(arguments: Sequence[str]) -> int:
    """Runs the demo.

    Args:
        arguments: The command line behind `demo`.

    Returns:
        Exit status: 0 if both kinds of session came to the same, 1 if they
        differ or the server refused.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.live and options.latency is not None:
        parser.error("--latency is the emulator's; the real service has its own")
    if options.model is not None and not options.live:
        parser.error("--model needs --live; without it the model is scripted")
    if options.live and not os.environ.get("OPENAI_API_KEY"):
        parser.error("--live needs an API key in the environment variable OPENAI_API_KEY")
    if options.png is not None and importlib.util.find_spec("matplotlib") is None:
        return _fail("--png needs matplotlib, which no extra brings: pip install matplotlib")
    latency = 0.05 if options.latency is None else options.latency

    # Highlighting would colour the figures that rich finds in a line.
    console = Console(highlight=False)
    runs = "1 run" if options.runs == 1 else f"{options.runs} runs"
    if options.live:
        console.print(f"{runs} with a real model against the real service.")
    else:
        console.print(
            f"{runs} with a scripted model against the emulator, {latency * 1000:g} ms latency."
        )
    try:
        asyncio.run(_demo(console, options, latency))
    except LoopsDiffer as error:
        return _fail(f"the two sessions differ: {error}")
    except (OpenAIError, AgentsException, CachedSessionError) as error:
        return _fail(f"stopped by {type(error).__name__}: {error}")
    return 0


async def _demo(console: Console, options: argparse.Namespace, latency: float) -> None:
    async with _live(options.model) if options.live else _offline(latency, options.runs) as setting:
        await _warm_up(setting.place)
        one, other = await _both_loops(console, setting, options.runs)
    history, inputs = histories_differ(one, other), inputs_differ(one, other)
    console.print(
        results_table(one, other, same_history=history is None, same_inputs=inputs is None)
    )
    if options.plot:
        plot = text_plot((one, other), console.width, colours=console.is_terminal)
        console.print(Text.from_ansi(plot), soft_wrap=True)
    if options.png is not None:
        draw_png((one, other), options.png)
        console.print(f"The times are drawn in {options.png}.", markup=False, soft_wrap=True)
    if history is not None or inputs is not None:
        found = {"history on the server": history, "model inputs": inputs}
        raise LoopsDiffer(
            "; ".join(f"{where}: {what}" for where, what in found.items() if what is not None)
        )
    console.print("Same: ids aside. Time: without the time that the model takes.")


async def _both_loops(
    console: Console, setting: _Setting, runs: int
) -> tuple[LoopResult, LoopResult]:
    asked = questions(runs)
    with LoopProgress(console, (SDK, OURS), runs) as progress:
        one = await run_loop(
            SDK, _sdk_session, setting.model, asked, setting.place, progress.after_run
        )
        # The second loop hears what the model said in the first: a real model
        # never says the same twice, and then nothing could be compared.
        replay = ScriptedModel(one.responses)
        try:
            other = await run_loop(
                OURS, _cached_session, replay, asked, setting.place, progress.after_run
            )
            replay.assert_complete()
        except ModelScriptError as error:
            raise LoopsDiffer(f"model calls: {error}") from error
    return one, other


async def _warm_up(place: Place) -> None:
    """One run of each kind that nobody counts: what is imported at first use is there then."""

    def ignore(_: LoopResult) -> None:
        pass

    kinds: tuple[tuple[str, Callable[[AsyncOpenAI], OpenAIConversationsSession]], ...] = (
        (SDK, _sdk_session),
        (OURS, _cached_session),
    )
    for name, make_session in kinds:
        await run_loop(name, make_session, ScriptedModel(script(1)), questions(1), place, ignore)


@contextlib.asynccontextmanager
async def _offline(latency: float, runs: int) -> AsyncIterator[_Setting]:
    with Emulator(latency=latency) as emulator:
        place = Place(emulator.base_url, "none needed", local=True)
        yield _Setting(place, ScriptedModel(script(runs)))


@contextlib.asynccontextmanager
async def _live(model: str | None) -> AsyncIterator[_Setting]:
    async with AsyncOpenAI() as client:
        provider = OpenAIProvider(openai_client=client, use_responses=True)
        yield _Setting(Place(), provider.get_model(model))


def _sdk_session(client: AsyncOpenAI) -> OpenAIConversationsSession:
    return OpenAIConversationsSession(openai_client=client)


def _cached_session(client: AsyncOpenAI) -> OpenAIConversationsSession:
    return CachedSession(openai_client=client)


def _fail(message: str) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"cached-session demo: {message}", markup=False
    )
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cached-session demo",
        description="Runs the same agent with tools on OpenAIConversationsSession and on "
        "CachedSession, over HTTP, and compares requests, time, the history on the server and "
        "what the model was given.",
    )
    parser.add_argument("--runs", type=_positive, default=30, help="runs of the agent (30)")
    parser.add_argument(
        "--latency",
        type=_seconds,
        help="seconds between each request to the emulator and its answer (0.05)",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="use the real service and a real model, with the key in OPENAI_API_KEY; "
        "the model is called for one of the two loops, and its answers are replayed for the other",
    )
    parser.add_argument("--plot", action="store_true", help="draw each run's time, too")
    parser.add_argument(
        "--png",
        metavar="PATH",
        help="draw them into this file, with matplotlib if that is there",
    )
    parser.add_argument("--model", help="the real model (the Agents SDK's default)")
    return parser


def _positive(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError("must be a whole number, at least 1")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return value
