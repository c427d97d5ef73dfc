"""Making a session's conversation: once, whoever calls first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from cached_session.conversation.tasks import bury
from cached_session.conversation.turns import Turn, Turns

NEW = "a new conversation"


class Creation:
    """The making of one session's conversation.

    Args:
        create: Makes it, until a deadline on the running loop's clock.
        exists: Whether there is one by now.
    """

    def __init__(
        self, create: Callable[[float], Coroutine[None, None, None]], exists: Callable[[], bool]
    ) -> None:
        self._create = create
        self._exists = exists
        self._turns = Turns()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def idle(self) -> bool:
        """Whether nobody makes one, or waits for it."""
        return self._turns.idle

    async def ensure(self, deadline: float, *, create: bool) -> None:
        """Makes the conversation, or waits for whoever does.

        Args:
            deadline: Until when, on the running loop's clock.
            create: Whether to make it; otherwise whoever came before is waited for, no more.
        """
        turn = await self._turns.enter(deadline, NEW)
        bury(self._tasks)
        if self._exists() or not turn.current:
            turn.end_for_all()
            return
        if not create:
            # Whoever comes next may want to make it.
            turn.end()
            return
        # To its end: a caller who is cancelled must not leave behind a
        # conversation that the next caller does not know.
        task = asyncio.get_running_loop().create_task(self._create(deadline))
        self._tasks.add(task)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.add_done_callback(lambda task: self._abandoned(task, turn))
            raise
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is not None:
            turn.end()
        # From here on without waiting: whoever came first goes first.
        turn.end_for_all()
        task.result()

    def _abandoned(self, task: asyncio.Task[None], turn: Turn) -> None:
        self._tasks.discard(task)
        turn.end()
        if not task.cancelled():
            task.exception()  # nobody else retrieves it
