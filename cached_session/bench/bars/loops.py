"""Bars on the Runner's loop: what a run takes beyond its round trips, and late in a conversation."""

from __future__ import annotations

from agents import SQLiteSession

from cached_session.bench.bars.table import Bar
from cached_session.bench.kinds import Counter, cached_session, put_away
from cached_session.bench.loops import run_loop
from cached_session.bench.sites import Site, append, delete
from cached_session.bench.timing import Stopwatch, percentile


async def loop_against_memory(
    site: Site, *, runs: int = 100, latency: float = 0.05, times: int = 3
) -> list[Bar]:
    """The bar on the loop's time beyond its round trips.

    A round trip is what one bare append over the same client takes. The loop
    is held against the bare appends plus the same loop on SQLite, run by run.
    """
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    local: list[list[float]] = []
    for _ in range(times):
        ours.append(await _ours(site, runs))
        bare.append(await _bare(site, runs))
        local.append(await _local(runs))
    # What disturbs one run of one loop meets it at another place in the next.
    total, trips, memory = (
        sum(percentile(run, 50) for run in zip(*taken, strict=True))
        for taken in (ours, bare, local)
    )
    requests = 1 + 3 * runs
    return [
        Bar(
            f"{runs} runs with one tool call at {latency * 1e3:g} ms: time over the same loop on "
            f"`SQLiteSession` in memory, beyond the {requests} round trips that the appends need",
            "at most 3 %",
            3.0,
            (total - trips - memory) / memory * 100,
            "%",
            f"scripted model, tracing off; sum over the runs of the p50 of {times} loops: "
            f"{total:.2f} s, of them {trips:.2f} s round trips ({requests} bare requests over the "
            f"same client), against {memory:.2f} s. Of the whole it is "
            f"{(total - trips - memory) / total * 100:.2f} %",
        )
    ]


async def _ours(site: Site, runs: int) -> list[float]:
    async with site.client(Counter()) as client:
        session = cached_session(client)
        taken = await run_loop(session, runs=runs, tools=1)
        await put_away([session])
    return taken.seconds


async def _local(runs: int) -> list[float]:
    session = SQLiteSession("bench")
    taken = await run_loop(session, runs=runs, tools=1)
    session.close()
    return taken.seconds


async def _bare(site: Site, runs: int) -> list[float]:
    """The same requests and nothing else: one conversation, three appends a run."""
    seconds = []
    async with site.client(Counter()) as client:
        with Stopwatch() as creation:
            conversation_id = await site.fill(client, [])
        for run in range(runs):
            batches = _batches(run)
            with Stopwatch() as watch:
                for batch in batches:
                    await append(client, conversation_id, batch)
            seconds.append(watch.seconds)
        await delete(client, conversation_id)
    seconds[0] += creation.seconds
    return seconds


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
            await put_away([session])
    # Ten runs from the named one on, and ten that end with the last one.
    first = percentile([run for taken in loops for run in taken[early - 1 : early + 9]], 50)
    last = percentile([run for taken in loops for run in taken[-10:]], 50)
    return [
        Bar(
            f"time per run at the {runs}th run with `limit={limit}` against the {early}th",
            "at most 1.1",
            1.1,
            last / first,
            "",
            f"one tool call, no latency, {times} loops; p50 of runs {runs - 9} to {runs}: "
            f"{last * 1e3:.1f} ms, of runs {early} to {early + 9}: {first * 1e3:.1f} ms",
        )
    ]
