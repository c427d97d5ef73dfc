"""One worker of a fleet, in a process of its own, that appends as fast as it can.

It says "ready", waits for a number of seconds on its standard input, appends for so long, one item
at a time, and says how many.
"""

from __future__ import annotations

import asyncio
import sys
import time

from openai import AsyncOpenAI

from benchmarks.payload import items
from cached_session import CachedSession, PostgresOutbox


async def accept(address: str, base_url: str, conversation: str) -> None:
    """See the module."""
    outbox = PostgresOutbox(address, account="bench")
    async with AsyncOpenAI(base_url=base_url, api_key="none needed") as client:
        session = CachedSession(conversation_id=conversation, openai_client=client, outbox=outbox)
        await session.get_items()
        print("ready", flush=True)
        end = float(await asyncio.to_thread(sys.stdin.readline)) + time.monotonic()
        sent, accepted = items(1), 0
        while time.monotonic() < end:
            await session.add_items(sent)
            accepted += 1
        print(accepted, flush=True)
        await outbox.aclose(timeout=60)


if __name__ == "__main__":
    asyncio.run(accept(*sys.argv[1:]))
