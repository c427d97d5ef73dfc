"""Two workers on one conversation, and what each of them sees of the other.

In one process all sessions share one local copy. Two caches play two processes here.
"""

import asyncio
from typing import Any

from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache
from cached_session.emulator import Emulator


async def show(name: str, session: CachedSession) -> None:
    """Prints what a worker's session reads, and what it took."""
    before = session.stats.requests
    items: list[Any] = await session.get_items()
    texts = ", ".join(item["content"][0]["text"] for item in items)
    print(f"{name}: {texts or 'nothing'} ({session.stats.requests - before} requests)")


async def main() -> None:
    """Lets one worker write and the others look."""
    async with (
        Emulator() as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key="any") as client,
    ):
        writer = CachedSession(openai_client=client, cache=ConversationCache())
        await writer.add_items([{"role": "user", "content": "one"}])

        elsewhere = ConversationCache()
        same: dict[str, Any] = {
            "conversation_id": writer.session_id,
            "openai_client": client,
            "cache": elsewhere,
        }
        trusting = CachedSession(None, **same)
        checking = CachedSession(None, **same, max_staleness=0)
        await show("the first read of a session asks", trusting)

        await writer.add_items([{"role": "user", "content": "two"}])
        await show("then the local copy is trusted", trusting)
        await show("max_staleness=0 asks at every read", checking)
        await show("and renews the copy for all who share it", trusting)

        await writer.add_items([{"role": "user", "content": "three"}])
        await trusting.refresh()
        await show("refresh() forgets the copy", trusting)


if __name__ == "__main__":
    asyncio.run(main())
