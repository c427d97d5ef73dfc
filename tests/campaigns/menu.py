"""What a worker does, by chance: one menu for all worlds.

A world says how often each of it is done, what a session is, and what a failure means; it may
look closer at one or the other. What was asked and answered goes into the account.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from openai import OpenAIError

from cached_session import AppendOutcomeUnknown, CachedSessionError
from cached_session.emulator import Request, Response
from tests.campaigns.account import Account, Call, Item, Violation, said_to_have_landed, text_of

T = TypeVar("T")

KEY = {"authorization": "Bearer key"}

CALL: ContextVar[Call | None] = ContextVar("CALL", default=None)
"""The append or pop that a task works for."""


@dataclass
class Worker:
    """One task that works on the conversation.

    Attributes:
        name: Tells it from the others.
        rng: Draws all that it does.
        sessions: What it works with; of two, the second one asks before each read.
        process: The process it runs in, in a world that has some.
        number: That process's number.
        which: The session that it has chosen.
    """

    name: Any
    rng: random.Random
    sessions: list[Any]
    process: Any = None
    number: int = 0
    which: int = 0

    @property
    def session(self) -> Any:
        """The session that it has chosen."""
        return self.sessions[self.which]


def name_of(session: Any) -> str | None:
    """The conversation that a session is on; None: the server has not made it yet."""
    try:
        return str(session.session_id)
    except ValueError:
        return None


class Menu:
    """Workers on one conversation, and the account of what they do.

    Attributes:
        tally: What happened, by name.
        account: What was asked for, and what was answered.
        odds: How often each kind of operation is done.
        pace: How many operations a second a worker makes that takes its time.
        renewed: How often it takes a new session before an operation.
        parting: How often it closes all its sessions after one, and goes on with new ones.
        hurried: How often a caller leaves, within `patience` seconds.
        lasting: Operations that nobody leaves.
        several: How many operations of the session an operation makes, if more than one.
        deadline: Seconds that one of them may take.
        slack: Seconds that an operation may take beyond that.
        expected: What an operation may raise.
        limits: What a read may be limited to.
        sizes: How many items an append may have.
        words: How many items say what was said before.
        said: What they say.
        prefix: Begins the names of the items.
        flush_within: Between how many seconds a flush may take; None: as long as it takes.
        foreign_pace: How often a second another writer does something.
    """

    odds: Mapping[str, float] = {
        "append": 50,
        "read": 50,
        "pop": 15,
        "flush": 4,
        "refresh": 3,
        "clear": 3,
        "reopen": 5,
    }
    pace = 2.0
    renewed = 0.1
    parting = 0.0
    hurried, patience = 0.15, 0.3
    lasting = ("clear", "reopen")
    several: Mapping[str, int] = {"clear": 4}
    deadline, slack = 30.0, 0.1
    expected: tuple[type[Exception], ...] = (OpenAIError, CachedSessionError)
    limits: tuple[int | None, ...] = (None, None, 0, 1, 3, 10)
    sizes: tuple[int, ...] = (1, 1, 1, 2, 3, 5, 25)
    words = 0.25
    said: Sequence[str] = ("yes", "no")
    prefix = ""
    flush_within: tuple[float, float] | None = None
    foreign_pace = 1.0

    def __init__(self, account: Any, operations: int) -> None:
        self.tally: Counter[str] = Counter()
        self.account = account
        # What the other writer does is on an account of its own, where this one can't have it.
        self._beside: Account = account
        self._conversation_id = ""
        self._left = operations
        self._texts = 0

    # What a world says

    async def _session(self, at: Worker | None, **options: Any) -> Any:
        """A new session, on the conversation unless the options say otherwise."""
        raise NotImplementedError

    async def _close(self, at: Worker, session: Any) -> None:
        await session.aclose()

    async def _leave_cleared(self, at: Worker, session: Any) -> None:
        """Whether a session that was cleared is closed."""

    def _handle(self, request: Request) -> Response:
        """A request that no network can lose."""
        raise NotImplementedError

    def _held(self) -> list[Item]:
        """What the server holds, oldest first."""
        raise NotImplementedError

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Has another writer do something on the server."""
        return function(*arguments)

    def _stopping(self, at: Worker) -> bool:
        return False

    def _kind(self, at: Worker) -> str:
        return str(at.rng.choices([*self.odds], [*self.odds.values()])[0])

    def _dressed(self, rng: random.Random, text: str) -> str:
        """A text with what a server may change about it."""
        return text

    def _named(self, text: str) -> str:
        """A text by which `text_of` knows it, also where the server changes what is about it."""
        return text

    def _unknown(self, call: Call, error: AppendOutcomeUnknown) -> None:
        call.raises(self._now(), error.landed, unknown=True)

    def _raised(self, call: Call, error: Exception) -> None:
        call.raises(self._now(), said_to_have_landed(error), unknown=False)

    def _failed(self, kind: str, error: Exception) -> None:
        """An operation raised what it may raise."""
        unknown = isinstance(error, AppendOutcomeUnknown)
        if unknown and kind in ("read", "pop"):
            # What became of somebody's append is no reason for them to fail.
            raise Violation("a read or a pop raises for an append") from error
        if kind == "refresh" and not isinstance(error, CachedSessionError):
            raise error
        self.tally["append unknown" if unknown and kind == "append" else f"{kind} failed"] += 1

    # The operations

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _worker(self, name: Any, rng: random.Random, process: Any = None) -> Worker:
        at = Worker(name, rng, [], process, getattr(process, "number", 0))
        await self._come(at)
        return at

    async def _come(self, at: Worker) -> None:
        at.sessions = [await self._session(at), await self._session(at, max_staleness=0)]

    async def _part(self, at: Worker) -> None:
        """Closes all its sessions: in its process nobody uses the conversation for a moment."""
        for session in at.sessions:
            try:
                await self._close(at, session)
            except self.expected as error:
                self._failed("close", error)
        await self._come(at)

    async def _work(self, at: Worker) -> None:
        while self._left > 0 and not self._stopping(at):
            self._left -= 1
            await self._pause(at)
            if at.rng.random() < self.renewed:
                at.sessions[0] = await self._session(at)
            await self._one(at)
            if self.parting and at.rng.random() < self.parting:
                await self._part(at)

    async def _pause(self, at: Worker) -> None:
        await asyncio.sleep(at.rng.choice((0.0, 0.0, at.rng.expovariate(self.pace))))

    async def _one(self, at: Worker) -> None:
        rng = at.rng
        at.which = rng.randrange(len(at.sessions))
        kind = self._kind(at)
        hurried = rng.random() < self.hurried and kind not in self.lasting
        self.tally["operations"] += 1
        started = self._now()
        try:
            limit = rng.uniform(0.0, self.patience) if hurried else None
            async with asyncio.timeout(limit) as patience:
                await getattr(self, f"_{kind}")(at)
        except Exception as error:
            if type(error) is TimeoutError and patience.expired():
                self.tally["cancelled"] += 1
            elif isinstance(error, self.expected):
                self._failed(kind, error)
            else:
                raise
        else:
            self.tally[f"{kind} done"] += 1
        took = self._now() - started
        if took > self.several.get(kind, 1) * self.deadline + self.slack:
            raise Violation(f"{kind} took {took:.1f} s")

    async def _append(self, at: Worker) -> None:
        items = self._items(at.rng)
        await self._ended(self._call(at, map(text_of, items)), lambda: at.session.add_items(items))

    async def _pop(self, at: Worker) -> None:
        item = await self._ended(self._call(at, (), kind="pop"), lambda: at.session.pop_item())
        self.tally["popped"] += item is not None

    def _call(self, at: Worker, texts: Iterable[str], kind: str = "append") -> Call:
        call: Call = self.account.asks(
            texts, at.name, kind=kind, process=at.number, started=self._now()
        )
        return call

    async def _ended(self, call: Call, action: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        CALL.set(call)
        try:
            result = await action()
        except AppendOutcomeUnknown as error:
            self._unknown(call, error)
            raise
        except self.expected as error:
            self._raised(call, error)
            if call.kind == "append":
                self.account.answered(call)
            raise
        finally:
            CALL.set(None)
        self.account.answered(call.returns(self._now()), result)
        return result

    async def _read(self, at: Worker) -> None:
        await self._checked_read(at, at.session, at.rng.choice(self.limits))

    async def _checked_read(self, at: Worker, session: Any, limit: int | None) -> None:
        """Reads, and holds what is shown against the account."""
        raise NotImplementedError

    async def _clear(self, at: Worker) -> None:
        """A conversation of its own: filled, cleared, used again. Never half of it is left."""
        session = await self._session(at, conversation_id=None)
        words = [{"role": "user", "content": self._named(text)} for text in ("a", "b", "c")]
        try:
            await session.add_items(words)
            cleared = name_of(session)
            await session.clear_session()
            await session.add_items(words[:1])
            items = [text_of(dict(item)) for item in await session.get_items()]
            if items != ["a"] or (cleared is not None and name_of(session) == cleared):
                raise Violation(f"after a clear and an append of one item: {items}")
        finally:
            await self._leave_cleared(at, session)

    async def _flush(self, at: Worker) -> None:
        within = self.flush_within
        await at.session.flush(**({"timeout": at.rng.uniform(*within)} if within else {}))

    async def _refresh(self, at: Worker) -> None:
        await at.session.refresh()

    async def _reopen(self, at: Worker) -> None:
        closed, options = at.session, {"max_staleness": 0} if at.which else {}
        at.sessions[at.which] = await self._session(at, **options)
        await self._close(at, closed)

    # Items

    def _items(self, rng: random.Random) -> list[Any]:
        return [self._item(rng) for _ in range(rng.choice(self.sizes))]

    def _item(self, rng: random.Random) -> Item:
        self._texts += 1
        name, kind = f"{self.prefix}{self._texts}", rng.random()
        if kind < self.words:
            # Equal on purpose: the same words twice are two messages.
            return {"role": "user", "content": self._dressed(rng, rng.choice(self.said))}
        if kind < self.words + 0.1:
            return {"type": "function_call", "call_id": name, "name": "tool", "arguments": "{}"}
        if kind < self.words + 0.2:
            return {"type": "function_call_output", "call_id": name, "output": "done"}
        return {"role": "user", "content": self._dressed(rng, f"text {name}")}

    # What others do there

    def _directly(self, method: str, path: str = "", body: Item | None = None) -> Response:
        root = f"/v1/conversations/{self._conversation_id}/items"
        content = b"" if body is None else json.dumps(body).encode()
        return self._handle(Request(method, root + path, (), KEY, content))

    def _put(self, texts: Iterable[str], worker: str) -> None:
        """Somebody else appends messages, and it is on the account."""
        items = [{"role": "user", "content": self._named(text)} for text in texts]
        for start in range(0, len(items), 10):
            some = items[start : start + 10]
            call = self._beside.asks(map(text_of, some), worker, process=-1)
            self._directly("POST", "", {"items": some})
            call.returns()

    async def _foreign(self, rng: random.Random) -> None:
        """Another process, on a good network: appends items, removes the newest if it is its own.

        One that removed ours could take a part of a late copy before the copy
        is found; what is left of it then cannot be told from anybody's items.
        `docs/guarantees.md` says so.
        """
        number = 0
        while self._left > 0:
            await asyncio.sleep(rng.expovariate(self.foreign_pace))
            items = await self._aside(self._held)
            own = items and text_of(items[-1]).startswith("foreign")
            if rng.random() < 0.7 or not own:
                number += 1
                await self._aside(self._put, [f"foreign {number}"], "foreign")
            else:
                answer = await self._aside(self._directly, "DELETE", f"/{items[-1]['id']}")
                if answer.status == 200:
                    self._beside.popped[text_of(items[-1])] += 1
