"""A process of the simulation: what is gone when it crashes, and the crash."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import httpx2
from openai import AsyncOpenAI

from cached_session import CachedSession, ConversationCache, Event, RetryBudget, RetryPolicy
from cached_session.conversation.sender import Sender
from cached_session.session.adoption import Adopter
from tests.campaigns.account import Violation
from tests.simulation.network import Network
from tests.simulation.outbox_disk import SimOutbox

PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""The process that a task belongs to."""

# How often tasks that end are asked to, before one counts as not to be ended.
ROUNDS = 500


class Line(httpx2.AsyncBaseTransport):
    """A process's way to the network, which is cut when it crashes."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.cut = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.cut:
            await asyncio.get_running_loop().create_future()
        return await self._network.handle_async_request(request)


class Process:
    """One process, from its start to its crash.

    Attributes:
        number: Counts the processes of a run.
        alive: Whether it has not crashed.
        stopping: Whether its workers are to come to an end.
        tasks: Those that were made in it, oldest first.
        outbox: Its outbox, on the disk that all processes share.
    """

    def __init__(
        self,
        number: int,
        network: Network,
        outbox: SimOutbox,
        rng: random.Random,
        *,
        max_bytes: int,
        observer: Callable[[Event], None],
    ) -> None:
        self.number = number
        self.alive = True
        self.stopping = False
        self.tasks: list[asyncio.Task[Any]] = []
        self.outbox = outbox
        outbox.process = self
        self._line = Line(network)
        self._client: AsyncOpenAI | None = network.client(self._line)
        self._cache: ConversationCache | None = ConversationCache(max_bytes=max_bytes)
        self._sessions: list[CachedSession] = []
        self._policy = RetryPolicy(random=rng.random, budget=RetryBudget(1000, 100))
        self._observer = observer

    @property
    def deadline(self) -> float:
        """Seconds that one operation may take."""
        return self._policy.deadline

    def session(self, **options: Any) -> CachedSession:
        """A new session, which lives until it is closed or the process ends."""
        session = CachedSession(
            openai_client=self._client,
            cache=self._cache,
            retry=self._policy,
            outbox=self.outbox,
            observer=self._observer,
            **options,
        )
        self._sessions.append(session)
        return session

    async def close(self, session: CachedSession) -> None:
        """Closes a session."""
        self._sessions.remove(session)
        await session.aclose()

    async def close_all(self) -> None:
        """Closes what is open, and sends what it has left, as far as there is time for it."""
        while self._sessions:
            await self.close(self._sessions[0])
        await self.outbox.aclose(timeout=self.deadline)

    def start(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs something in it."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        return asyncio.get_running_loop().create_task(coroutine, name=name, context=context)

    def made(self, task: asyncio.Task[Any]) -> None:
        """Notes a task that was made in it."""
        self.tasks = [task for task in self.tasks if not task.done()]
        self.tasks.append(task)
        if not self.alive:
            # By a timer that would have gone with the process.
            task.cancel()

    async def crash(self) -> None:
        """Ends it here and now; what runs while its tasks are torn down can touch nothing."""
        self.alive = False
        self._line.cut = True
        self.outbox.crash()
        await self._torn_down()

    async def exit(self) -> None:
        """Ends it in good order, when everything is closed."""
        for _ in range(int(self.deadline)):
            # A request that nobody needs any more settles behind those who have left.
            if all(task.done() for task in self.tasks):
                break
            await asyncio.sleep(1.0)
        else:
            left = [task for task in self.tasks if not task.done()]
            raise Violation(f"tasks are left over when all is closed: {left}")
        self.alive = False
        self._line.cut = True
        self.outbox.end()
        await self._torn_down()

    async def _torn_down(self) -> None:
        for _ in range(ROUNDS):
            left = [task for task in self.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.sleep(0)
        else:
            raise Violation(f"tasks outlive their cancellation: {left}")
        self._sessions.clear()
        self._client = self._cache = None


def task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Any, context: contextvars.Context | None = None
) -> asyncio.Task[Any]:
    """Makes a task and tells its process, so that it ends with it."""
    maker = coroutine.cr_frame.f_locals.get("self")
    if isinstance(maker, Sender):
        # It is made in an empty context, which the tasks that it makes copy.
        PROCESS.set(maker._record.outbox.process)  # type: ignore[attr-defined]  # a SimOutbox
    elif isinstance(maker, Adopter) and context is None and PROCESS.get() is None:
        # Likewise.
        (user, *_) = maker._users
        PROCESS.set(user.outbox.process)  # type: ignore[attr-defined]  # a session's binding
    task = asyncio.Task(coroutine, loop=loop, context=context)
    process = PROCESS.get() if context is None else context.get(PROCESS)
    if process is not None:
        process.made(task)
    return task
