"""Bars on the Runner's loop: a run beyond its round trips, and late in a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import OpenAIConversationsSession, SQLiteSession
from openai import AsyncOpenAI

from benchmarks.bars.table import Bar
from benchmarks.kinds import Counter, cached_session, put_away
from benchmarks.loops import Loop, run_loop
from benchmarks.payload import structural_copy
from benchmarks.sites import Site, append, delete
from benchmarks.timing import Stopwatch, percentile


async def loop_against_memory(
    site: Site, *, runs: int = 100, latency: float = 0.05, times: int = 3
) -> list[Bar]:
    """The bars on the loop's time beyond its round trips.

    A round trip is what one bare append over the same client takes. What the
    bar is a share of can be read in two ways; both are here.
    """
    rounds = [await _one_round(site, runs) for _ in range(times)]
    ours, trips, memory, least = map(_quickest, zip(*rounds, strict=True))
    requests = 1 + 3 * runs
    beyond = ours.total - trips.total - memory.total
    work = f"{runs} runs with one tool call at {latency * 1e3:g} ms: time beyond"
    how = (
        f"scripted model, tracing off; sum over the runs of the quickest of {times} loops: "
        f"{ours}, of it {trips} for {requests} bare requests over the same client, and "
        f"{memory} for the loop on `SQLiteSession` in memory"
    )
    return [
        Bar(
            f"{work} the {requests} round trips and the loop on `SQLiteSession` in memory, as a "
            "share of both together",
            "at most 3 %",
            3.0,
            beyond / (trips.total + memory.total) * 100,
            "%",
            f"{how}. The loop on a session that sends the same requests bare, and reads without "
            f"any cost, takes {least}: what is run after a wait is slower than in one go. Beyond "
            f"that one ours takes {(ours.total / least.total - 1) * 100:.1f} %",
        ),
        Bar(
            f"{work} the same, as a share of the loop on `SQLiteSession` alone",
            "at most 3 %",
            3.0,
            beyond / memory.total * 100,
            "%",
            "as above",
        ),
    ]


def _quickest(loops: Sequence[Loop]) -> Loop:
    """Each run as it was in the quickest of several loops: noise seldom meets it in all."""
    return Loop(
        [min(run) for run in zip(*(loop.seconds for loop in loops), strict=True)],
        [min(run) for run in zip(*(loop.cpu for loop in loops), strict=True)],
    )


async def _one_round(site: Site, runs: int) -> tuple[Loop, ...]:
    """Each run: ours, bare requests, SQLite, and bare requests in the loop."""
    async with site.client(Counter()) as client:
        session = cached_session(client)
        ours = await run_loop(session, runs=runs, tools=1)
        history = await session.get_items()
        await put_away(site, [session])
        bare = await _bare_requests(site, client, runs)
        local = SQLiteSession("bench")
        memory = await run_loop(local, runs=runs, tools=1)
        local.close()
        conversation_id = await site.fill(client, [])
        least = await run_loop(_Bare(history, client, conversation_id), runs=runs, tools=1)
        await delete(client, conversation_id)
    return ours, bare, memory, least


class Played(OpenAIConversationsSession):
    """Sends and records nothing: plays back what another session of the same loop has left.

    Args:
        history: That session's items, in the server's shape.
        client: The client.
        conversation_id: The conversation.
    """

    def __init__(self, history: Sequence[Any], client: AsyncOpenAI, conversation_id: str) -> None:
        super().__init__(conversation_id=conversation_id, openai_client=client)
        self._history = history
        self._added = 0

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """What there was at this point; the caller's own copy."""
        return [structural_copy(item) for item in self._history[: self._added]]

    async def add_items(self, items: list[Any]) -> None:
        """On in the history."""
        self._added += len(items)


class _Bare(Played):
    """Plays back, and sends each append bare."""

    def __init__(self, history: Sequence[Any], client: AsyncOpenAI, conversation_id: str) -> None:
        super().__init__(history, client, conversation_id)
        self._client = client

    async def add_items(self, items: list[Any]) -> None:
        """One request, and on in the history."""
        await append(self._client, self.session_id, items)
        await super().add_items(items)


async def _bare_requests(site: Site, client: AsyncOpenAI, runs: int) -> Loop:
    """The same requests and nothing else: one conversation, three appends a run."""
    loop = Loop()
    with Stopwatch() as creation:
        conversation_id = await site.fill(client, [])
    for run in range(runs):
        batches = _batches(run)
        with Stopwatch() as watch:
            for batch in batches:
                await append(client, conversation_id, batch)
        loop.seconds.append(watch.seconds)
        loop.cpu.append(watch.cpu)
    await delete(client, conversation_id)
    loop.seconds[0] += creation.seconds
    loop.cpu[0] += creation.cpu
    return loop


def _batches(run: int) -> list[list[dict[str, object]]]:
    call = f"call_{run}"
    return [
        [{"role": "user", "content": f"Question {run}: how many lanterns are there?"}],
        [
            {"type": "function_call", "call_id": call, "name": "stock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": call, "output": "31 lanterns in stock"},
        ],
        [{"role": "assistant", "content": f"Answer {run}: there are plenty."}],
    ]


async def late_runs(
    site: Site, *, runs: int = 400, early: int = 10, limit: int = 40, times: int = 2
) -> list[Bar]:
    """The bar on a late run's time where the model is given the newest items only."""
    loops = []
    for _ in range(times):
        async with site.client(Counter()) as client:
            session = cached_session(client)
            taken = await run_loop(session, runs=runs, tools=1, limit=limit)
            loops.append(taken.seconds)
            await put_away(site, [session])
    # Ten runs from the named one on, and ten that end with the last one.
    first = percentile([run for taken in loops for run in taken[early - 1 : early + 9]], 10)
    last = percentile([run for taken in loops for run in taken[-10:]], 10)
    return [
        Bar(
            f"time per run at the {runs}th run with `limit={limit}` against the {early}th",
            "at most 1.1",
            1.1,
            last / first,
            "",
            f"one tool call, no latency, {times} loops; p10 of runs {runs - 9} to {runs}: "
            f"{last * 1e3:.1f} ms, of runs {early} to {early + 9}: {first * 1e3:.1f} ms",
        )
    ]
