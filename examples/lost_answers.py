"""What becomes of a conversation when answers are lost on the way.

The emulator carries out every request, and resets the connection of every tenth in place of
answering. The SDK's session sends such a batch again, and the server has it twice. CachedSession
looks at the server first.
"""

import asyncio
from typing import Any

from agents import OpenAIConversationsSession
from openai import AsyncOpenAI

from cached_session import CachedSession, Event, Reconciled
from cached_session.emulator import Emulator, Faults


def report(event: Event) -> None:
    """Says so when a lost answer was made up for."""
    if isinstance(event, Reconciled):
        print(f"  an answer was lost; of {event.sent} items the server had {event.landed}")


async def write_a_diary(name: str, session: OpenAIConversationsSession, emulator: Emulator) -> None:
    """Appends 40 items, one request each, and says what the server has then."""
    print(name)
    emulator.faults = Faults(seed=7, rates={"reset_after_commit": 0.1})
    for day in range(40):
        await session.add_items([{"role": "user", "content": f"Day {day}"}])
    emulator.faults = None
    items: list[Any] = emulator.items(session.session_id)
    days = [item["content"][0]["text"] for item in items]
    print(f"  items on the server: {len(days)}, different ones: {len(set(days))}")


async def main() -> None:
    """Writes the same diary with both kinds of session."""
    async with (
        Emulator() as emulator,
        AsyncOpenAI(base_url=emulator.base_url, api_key="any") as client,
    ):
        theirs = OpenAIConversationsSession(openai_client=client)
        await write_a_diary("OpenAIConversationsSession", theirs, emulator)
        async with CachedSession(openai_client=client, observer=report) as ours:
            await write_a_diary("CachedSession", ours, emulator)


if __name__ == "__main__":
    asyncio.run(main())
