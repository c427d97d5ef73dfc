"""`flaky`: the loop on a network that fails, and what became of the items."""

from __future__ import annotations

import argparse
from collections import Counter as Tally
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping
from typing import Any

from agents.exceptions import AgentsException
from agents.memory import Session
from openai import AsyncOpenAI, OpenAIError

from benchmarks.harness import Bench, Work, amount, count, shares
from benchmarks.kinds import Kind
from benchmarks.results import Figure
from benchmarks.sites import Counter, Site
from benchmarks.timing import percentile
from benchmarks.work.loop import run_loop
from cached_session import CachedSessionError

# What a bad network does, each an equal share of the rate: before or after the
# server has carried out the request, with or without a word.
KINDS = (
    "reset_before_commit",
    "reset_after_commit",
    "error_before_commit",
    "error_after_commit",
    "truncated",
)

_FAILURES = (OpenAIError, CachedSessionError, AgentsException)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rates",
        type=shares,
        default=[0.0, 0.05, 0.1, 0.2, 0.3],
        help="share of requests that fail, 0 to 1 (0,0.05,0.1,0.2,0.3)",
    )
    parser.add_argument("--runs", type=amount, default=30, help="runs of the agent (30)")
    parser.add_argument("--tools", type=int, default=1, help="tool calls in each run (1)")
    parser.add_argument("--latency", type=float, default=0.005, help="seconds a request (0.005)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (0)")


async def _run(bench: Bench, options: argparse.Namespace) -> AsyncIterator[Figure]:
    for rate in [0.0] if bench.sites.foreign else options.rates:
        for kind in bench.kinds:
            if kind.session is not None:
                yield await _flaky(bench, kind, rate, options)


async def _flaky(bench: Bench, kind: Kind, rate: float, options: argparse.Namespace) -> Figure:
    runs, latency = options.runs, options.latency
    faults = {fault: rate / len(KINDS) for fault in KINDS} if rate else None
    site = bench.sites.at(latency, faults=faults, seed=options.seed)
    workload = (
        f"{count(runs, 'run')} with {count(options.tools, 'tool call')} each, {bench.at(latency)}, "
        "scripted model, "
        f"{rate:.0%} of the requests fail ({', '.join(KINDS)} in equal shares)"
    )
    counter = Counter()
    with bench.measuring(f"flaky: {kind.name}, {rate:.0%} faults", runs) as step:
        async with kind.shelf(site, counter) as make:
            session = make()
            accepted = _accepted(session)
            loop = await run_loop(
                session, runs=runs, tools=options.tools, failures=_FAILURES, after_run=step
            )
            requests = counter.requests
            stored = await _stored(site, session)
    wanted = Tally(map(identity, accepted))
    found = Tally(map(identity, stored))
    return Figure(
        "flaky",
        workload,
        kind.name,
        {"faults %": rate * 100},
        {
            "total s": loop.total,
            "run p50 ms": percentile(loop.seconds, 50) * 1e3,
            "run p95 ms": percentile(loop.seconds, 95) * 1e3,
            "requests": requests,
            "failed runs": loop.failed,
            "items lost": (wanted - found).total(),
            "items doubled": sum(count - 1 for count in found.values()),
        },
    )


def _accepted(session: Session) -> list[Any]:
    """Notes from now on every item of an `add_items` that returned."""
    accepted: list[Any] = []
    add_items = session.add_items

    async def noting(items: list[Any]) -> None:
        sent = list(items)
        await add_items(items)
        accepted.extend(sent)

    session.add_items = noting  # type: ignore[method-assign]  # on this one object
    return accepted


def identity(item: Mapping[str, Any]) -> Hashable:
    """What tells an item of the loop from every other one: its call, or its text."""
    if item.get("call_id") is not None:
        return item["type"], item["call_id"]
    content = item["content"]
    return item["role"], content if isinstance(content, str) else _text(content)


def _text(parts: Iterable[Mapping[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)


async def _stored(site: Site, session: Session) -> list[Any]:
    """What the server has, asked for by neither session, as often as it takes."""
    try:
        conversation_id = session.session_id
    except ValueError:  # no run came as far as making one
        return []
    async with site.client() as client:
        return await _listing(client.with_options(max_retries=50), conversation_id)


async def _listing(client: AsyncOpenAI, conversation_id: str) -> list[Any]:
    pages = client.conversations.items.list(conversation_id, order="asc", limit=100)
    return [item.model_dump(exclude_unset=True) async for item in pages]


WORK = Work("flaky", "the loop on a network that fails: items lost and doubled", _options, _run)
