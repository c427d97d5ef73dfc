"""Makes runs over real sockets, a few at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from cached_session.emulator import ConversationStore, Service, random_ids
from tests.campaigns.plan import Failure
from tests.campaigns.setting import Setting
from tests.campaigns.witness import Forwarding, Handler
from tests.campaigns.world import World

AT_ONCE = 4
"""Runs at the same time, each with a server and a conversation of its own."""


async def play(settings: Iterable[Setting], *, at_once: int = AT_ONCE) -> list[World]:
    """Makes runs, and returns them.

    Raises:
        Failure: A promise was not kept.
    """
    slots = asyncio.Semaphore(at_once)

    async def one(setting: Setting) -> World:
        behind: AbstractContextManager[Handler] = (
            nullcontext(Service(ConversationStore(new_id=random_ids())))
            if setting.upstream is None
            else Forwarding(setting.upstream)
        )
        async with slots:
            with behind as service:
                world = World(setting, service)
                try:
                    await world.run()
                except Exception as error:
                    raise Failure(setting, error, world.trace) from error
                return world

    results = await asyncio.gather(*map(one, settings), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if isinstance(result, World)]


def total(worlds: Iterable[World]) -> Counter[str]:
    """What happened in all of the runs."""
    tally: Counter[str] = Counter()
    for world in worlds:
        tally.update(world.tally)
    return tally
