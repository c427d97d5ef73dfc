"""The guard: ratios that a change must not make much worse.

    python -m benchmarks.guard

Every ratio holds a path of CachedSession against plain work of the same size,
in one process and in turn, by the best of several short measurements. A noisy
or slow machine then slows both sides. The bounds leave room for about a third
above what is usual, so that a regression by half is noticed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx2
from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from benchmarks.bars.footprint import import_both
from benchmarks.holding import hold_conversations
from benchmarks.kinds import Counter, MakeSession, cached_session
from benchmarks.loops import run_loop
from benchmarks.payload import items, structural_copy
from benchmarks.sites import BATCH, Site, Sites, append, delete
from benchmarks.timing import Stopwatch, alternate

PAGE = 100


@dataclass(frozen=True, slots=True)
class Check:
    """One ratio or count, and the most that it may be.

    Attributes:
        name: What is held against what.
        measured: What it is now.
        most: What it may be.
    """

    name: str
    measured: float
    most: float

    @property
    def passed(self) -> bool:
        """Whether it is within its bound."""
        return self.measured <= self.most


async def reads(site: Site, make: MakeSession) -> AsyncIterator[Check]:
    """Reads of what is held, against the bare copy, and against a short conversation."""
    async with site.client(Counter()) as client:
        made = [await site.fill(client, items(size)) for size in (500, 3000, 100)]
        whole, long, short = [make(client, conversation_id) for conversation_id in made]
        held, newest = await whole.get_items(), (await long.get_items())[-20:]
        await short.get_items()

        async def bare() -> Any:
            return structural_copy(held)

        async def bare_few() -> Any:
            return structural_copy(newest)

        all_of = await _best({"ours": whole.get_items, "bare": bare}, rounds=150)
        some_of = await _best(
            {
                "ours": lambda: long.get_items(20),
                "bare": bare_few,
                "short": lambda: short.get_items(20),
            },
            rounds=1500,
        )
        for conversation_id in made:
            await delete(client, conversation_id)
    yield Check("get_items() of 500 held / bare copy", all_of["ours"] / all_of["bare"], 0.55)
    yield Check("get_items(20) of 3,000 held / bare copy", some_of["ours"] / some_of["bare"], 0.72)
    yield Check(
        "get_items(20) of 3,000 held / of 100 held", some_of["ours"] / some_of["short"], 1.35
    )


async def wire(site: Site, make: MakeSession) -> AsyncIterator[Check]:
    """CPU of a long append and of a first read, against bare requests of the same size."""
    sent = items(200)
    size = 1000
    async with site.client(Counter()) as client:
        conversation_id = await site.fill(client, items(size))
        one = make(client, None)
        await one.get_items()
        appended, posted, read, listed = [], [], [], []
        for _ in range(10):
            appended.append(await _cpu(lambda: one.add_items(sent)))
            posted.append(await _cpu(lambda: _post(client, one.session_id, sent)))
        for _ in range(10):
            read.append(await _cpu(lambda: make(client, conversation_id).get_items()))
            listed.append(await _cpu(lambda: _list(client, conversation_id, size)))
        await delete(client, conversation_id)
        await delete(client, one.session_id)
    yield Check("CPU of add_items of 200 / bare requests", min(appended) / min(posted), 1.6)
    yield Check("CPU of a first read of 1,000 / bare requests", min(read) / min(listed), 1.8)


async def requests(site: Site, make: MakeSession) -> AsyncIterator[Check]:
    """How many requests a first read and a loop need; these are exact."""
    counter = Counter()
    async with site.client(counter) as client:
        conversation_id = await site.fill(client, items(1000))
        before = counter.requests
        await make(client, conversation_id).get_items()
        read = counter.requests - before
        await delete(client, conversation_id)
        before = counter.requests
        session = make(client, None)
        await run_loop(session, runs=5, tools=1)
        looped = counter.requests - before
        await delete(client, session.session_id)
    yield Check("requests of a first read of 1,000", read, 1000 / PAGE + 1)
    yield Check("requests of 5 runs with one tool call", looped, 1 + 5 * 3)


async def footprint(site: Site) -> AsyncIterator[Check]:
    """Memory by the byte of JSON, and the import by that of the SDK."""
    held = await hold_conversations(site, conversations=20, size=40)
    yield Check("memory / JSON", held.traced / held.json, 2.3)
    yield Check("memory / memory as counted", held.traced / held.counted, 1.25)
    yield Check("memory as counted / memory", held.counted / held.traced, 1.25)
    taken = [import_both() for _ in range(3)]
    own, agents = min(one.own_cpu for one in taken), min(one.agents_cpu for one in taken)
    yield Check("CPU of import cached_session / of import agents", own / agents, 0.04)


async def measure(site: Site, make: MakeSession = cached_session) -> list[Check]:
    """All checks; `make` makes the sessions that are measured."""
    checks = [reads(site, make), wire(site, make), requests(site, make), footprint(site)]
    return [check for group in checks async for check in group]


async def _best(
    actions: dict[str, Callable[[], Awaitable[Any]]], *, rounds: int
) -> dict[str, float]:
    taken = await alternate(actions, rounds=rounds)
    return {name: min(seconds) for name, seconds in taken.items()}


async def _cpu(action: Callable[[], Awaitable[Any]]) -> float:
    with Stopwatch() as watch:
        await action()
    return watch.cpu


async def _post(client: AsyncOpenAI, conversation_id: str, sent: list[Any]) -> None:
    for start in range(0, len(sent), BATCH):
        await append(client, conversation_id, sent[start : start + BATCH])


async def _list(client: AsyncOpenAI, conversation_id: str, size: int) -> None:
    after: dict[str, object] = {}
    for _ in range(size // PAGE):
        answer = await client.get(
            f"/conversations/{conversation_id}/items",
            cast_to=httpx2.Response,
            options={"params": {"order": "asc", "limit": PAGE, **after}},
        )
        after = {"after": json.loads(answer.content)["last_id"]}


def report(checks: list[Check]) -> Table:
    """The checks as a table."""
    table = Table("what", "measured", "at most", "")
    for check in checks:
        verdict = "ok" if check.passed else "TOO MUCH"
        table.add_row(check.name, f"{check.measured:.3g}", f"{check.most:.3g}", verdict)
    return table


def main() -> int:
    """Measures, and once more if something is too much: noise seldom comes twice."""
    console = Console(highlight=False)
    checks: list[Check] = []
    with Sites() as sites:
        for _ in range(2):
            checks = asyncio.run(measure(sites.at()))
            console.print(report(checks))
            if all(check.passed for check in checks):
                return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
