"""Where the conversations of a benchmark are kept: emulators of its own, or a user's server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx2
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

# "You may add up to 20 items at a time." Source: OpenAI's OpenAPI document.
BATCH = 20

# How many requests fill an emulator at once. A server of somebody else's gets
# one at a time, because it may refuse to work on a conversation twice at once.
_LANES = 16


class Counter:
    """Counts the requests of a client.

    Attributes:
        requests: How many were sent.
    """

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, _: httpx2.Request) -> None:
        """Counts one."""
        self.requests += 1


@dataclass(frozen=True, slots=True)
class Site:
    """One server.

    Attributes:
        base_url: Its base URL.
        api_key: The key; None: what the openai client finds by itself.
        own: It is an emulator that the benchmark started.
    """

    base_url: str
    api_key: str | None
    own: bool

    def client(self, counter: Counter | None = None) -> AsyncOpenAI:
        """A client whose requests are counted."""
        # No proxy stands before what is on this machine.
        http = DefaultAsyncHttpxClient(
            event_hooks={"request": [counter or Counter()]}, trust_env=not self.own
        )
        return AsyncOpenAI(base_url=self.base_url, api_key=self.api_key, http_client=http)

    async def fill(
        self, client: AsyncOpenAI, stored: Sequence[Any], *, in_order: bool = False
    ) -> str:
        """Makes a conversation with these items and returns its id.

        On an emulator the batches may stand in any order, unless it is asked for.
        """
        conversation_id = await create(client)
        batches = [stored[start : start + BATCH] for start in range(0, len(stored), BATCH)]

        async def send() -> None:
            while batches:
                await append(client, conversation_id, batches.pop(0))

        lanes = _LANES if self.own and not in_order else 1
        await asyncio.gather(*(send() for _ in range(lanes)))
        return conversation_id

    @asynccontextmanager
    async def holding(self, *stored: Sequence[Any]) -> AsyncIterator[tuple[AsyncOpenAI, list[str]]]:
        """A client and a conversation for each list of items, which are deleted at the end."""
        async with self.client() as client:
            made = [await self.fill(client, one) for one in stored]
            try:
                yield client, made
            finally:
                for conversation_id in made:
                    await delete(client, conversation_id)


async def create(client: AsyncOpenAI) -> str:
    """Makes an empty conversation; returns its id."""
    answer = await client.post("/conversations", body={}, cast_to=httpx2.Response)
    conversation_id: str = answer.json()["id"]
    return conversation_id


async def append(client: AsyncOpenAI, conversation_id: str, batch: Sequence[Any]) -> None:
    """One bare append: what the client's plain `post` takes for it, and nothing else."""
    await client.post(
        f"/conversations/{conversation_id}/items",
        body={"items": batch},
        cast_to=httpx2.Response,
        options={"max_retries": 0},
    )


async def delete(client: AsyncOpenAI, conversation_id: str) -> None:
    """Deletes a conversation."""
    await client.delete(f"/conversations/{conversation_id}", cast_to=httpx2.Response)


class Sites:
    """The servers of one benchmark run, each started when it is first asked for.

    An emulator runs in a process of its own, so that its CPU time is not
    counted as the client's.

    Args:
        base_url: A user's own server, which is then the only one; its latency
            and faults are its own.
        api_key: The key for it; None: what the openai client finds by itself.
    """

    def __init__(self, base_url: str | None = None, api_key: str | None = None) -> None:
        self._foreign = None if base_url is None else Site(base_url, api_key, own=False)
        self._emulators: dict[tuple[str, ...], tuple[subprocess.Popen[str], Site]] = {}

    @property
    def foreign(self) -> bool:
        """Whether the server is a user's own."""
        return self._foreign is not None

    def at(
        self, latency: float = 0.0, *, faults: Mapping[str, float] | None = None, seed: int = 0
    ) -> Site:
        """A server that answers after `latency` seconds.

        Args:
            latency: Seconds between each request and its answer.
            faults: Share of requests that each kind of fault befalls. Such an
                emulator is a new one, so that its faults begin anew.
            seed: Where the faults are drawn from.
        """
        if self._foreign is not None:
            return self._foreign
        options: tuple[str, ...] = ("--latency", str(latency))
        if faults:
            rates = ",".join(f"{kind}={rate}" for kind, rate in faults.items())
            options += ("--faults", rates, "--seed", str(seed))
            self.stop(options)
        if options not in self._emulators:
            self._emulators[options] = _start(options)
        return self._emulators[options][1]

    def stop(self, options: tuple[str, ...]) -> None:
        """Stops the emulator that was started with these options, if there is one."""
        process, _ = self._emulators.pop(options, (None, None))
        if process is not None:
            process.terminate()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for options in list(self._emulators):
            self.stop(options)


def _start(options: tuple[str, ...]) -> tuple[subprocess.Popen[str], Site]:
    command = [sys.executable, "-m", "cached_session.emulator", *options]
    # In a session of its own: an interrupt at the terminal is this program's, which
    # then stops the emulator. One that met both would be told of as a failed start.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    base_url = process.stdout.readline().strip()
    if not base_url:
        process.communicate()
        raise RuntimeError("the emulator did not start")
    return process, Site(base_url, "none needed", own=True)
