"""One operation under one fault over real sockets, told in a fixed phrase."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

from agents import OpenAIConversationsSession
from openai import OpenAIError

from cached_session import CachedSession, ConversationCache, RetryBudget, RetryPolicy
from cached_session.emulator import (
    ConversationStore,
    Emulator,
    Fault,
    FaultKind,
    FaultPlan,
    Request,
    Service,
    random_ids,
)
from tests.campaigns.account import text_of
from tests.campaigns.setting import Kind
from tests.campaigns.witness import Witness
from tests.clients import HttpKind, openai_client
from tests.servers import eventually

Operation = Literal["create", "append", "read", "pop", "clear"]

OPERATIONS: Final[tuple[Operation, ...]] = ("create", "append", "read", "pop", "clear")

ATTEMPT: Final = 1.0
"""Seconds that a request may take, with either session, where the fault is that it takes long."""

AMPLE: Final = 10.0
"""Seconds that a request may take otherwise, so that a busy machine adds no fault of its own."""

ENDLESS: Final = 100
"""Requests after which a call is taken for one without an end. Every other one makes fewer."""

FAULTS: Final = {
    # Well before the SDK's client tries again, which waits 0.375 s at least (measured).
    FaultKind.LATE_COMMIT: Fault(FaultKind.LATE_COMMIT, delay=0.15),
    FaultKind.SLOW: Fault(FaultKind.SLOW, delay=3 * ATTEMPT),
    FaultKind.REFUSED: Fault(FaultKind.REFUSED, delay=0.03),
    FaultKind.RATE_LIMITED: Fault(FaultKind.RATE_LIMITED, retry_after=0.05),
    FaultKind.WRONG_SHAPE: Fault(FaultKind.WRONG_SHAPE, variant=3),
}
"""What is drawn for a kind, where it is not the default."""

BATCH: Final = ("first", "second", "third")
BEFORE: Final = {"append": 2, "read": 130, "pop": 3, "clear": 3}
CANNOT: Final = "cannot happen"


@dataclass(frozen=True)
class Case:
    """One cell of the table.

    Attributes:
        operation: What the caller does.
        fault: What goes wrong.
        throughout: Whether it befalls every request until the call has ended;
            otherwise the operation's own request, once.
        kind: Which session is used.
        http: Which HTTP client the openai client has.
    """

    operation: Operation
    fault: FaultKind
    throughout: bool
    kind: Kind
    http: HttpKind = "default"

    @property
    def possible(self) -> bool:
        """Whether a request of the operation can suffer the fault."""
        match self.fault:
            case FaultKind.PARTIAL_BATCH:
                return self.operation == "append"
            case FaultKind.CURSOR_REFUSED | FaultKind.CURSOR_IGNORED:
                return self.operation == "read"
            case FaultKind.LATE_COMMIT:
                return self.operation != "read"
            case _:
                return True

    @property
    def long(self) -> bool:
        """Whether the fault is that an answer takes long."""
        return self.fault in (FaultKind.SLOW, FaultKind.HANG)

    def plan(self) -> FaultPlan:
        """The plan that makes the fault happen."""
        fault = FAULTS.get(self.fault, Fault(self.fault))
        left = itertools.repeat(fault) if self.throughout else iter([fault])

        def decide(request: Request) -> Fault | None:
            meant = self.throughout or _operation(request) == self.operation
            return next(left, None) if meant and _can_suffer(request, self.fault) else None

        return decide


def _operation(request: Request) -> Operation | None:
    parts = request.path.count("/")
    names: dict[tuple[str, int], Operation] = {
        ("POST", 2): "create",
        ("POST", 4): "append",
        ("GET", 4): "read",
        ("DELETE", 5): "pop",
        ("DELETE", 3): "clear",
    }
    return names.get((request.method, parts))


def _can_suffer(request: Request, fault: FaultKind) -> bool:
    match fault:
        case FaultKind.PARTIAL_BATCH:
            return _operation(request) == "append"
        case FaultKind.CURSOR_REFUSED | FaultKind.CURSOR_IGNORED:
            return request.parameter("after") is not None
        case FaultKind.LATE_COMMIT:
            return request.method != "GET"
        case _:
            return True


async def measure(case: Case) -> str:
    """Makes one call under a fault, on a server of its own.

    The server is looked at when every commit has come in and the session has
    read once more.

    Returns:
        What the caller saw and what the server holds, in a fixed phrase.
    """
    if not case.possible:
        return CANNOT
    witness = Witness(Service(ConversationStore(new_id=random_ids())))
    conversation = (
        None
        if case.operation == "create"
        else witness.make([*map(str, range(BEFORE[case.operation]))])
    )
    async with _open(witness, case, conversation) as (emulator, session):
        if case.operation in ("append", "pop", "clear"):
            await session.get_items()
        emulator.faults = witness.planned(case.plan(), lambda fault: None)
        seen = await _ended(_call(session, case.operation), emulator)
        emulator.faults = None
        await asyncio.to_thread(eventually, witness.settled)
        if case.operation in ("append", "pop"):
            await session.get_items()
        if case.operation == "read":
            return seen
        return f"{seen}; {_left_behind(witness, case.operation, conversation)}"


@contextlib.asynccontextmanager
async def _open(
    witness: Witness, case: Case, conversation: str | None
) -> AsyncIterator[tuple[Emulator, Any]]:
    with Emulator(service=witness) as emulator:  # type: ignore[arg-type]
        attempt = ATTEMPT if case.long else AMPLE
        async with openai_client(case.http, emulator.base_url, attempt) as client:
            if case.kind == "sdk":
                yield (
                    emulator,
                    OpenAIConversationsSession(conversation_id=conversation, openai_client=client),
                )
                return
            policy = RetryPolicy(
                max_attempts=3 if case.long else 4,
                deadline=6 * attempt,
                attempt_timeout=attempt,
                initial_delay=0.1,
                max_delay=0.4,
                budget=RetryBudget(1000, 100),
            )
            session = CachedSession(
                conversation_id=conversation,
                openai_client=client,
                cache=ConversationCache(),
                retry=policy,
            )
            yield emulator, session
            # The look that closing makes may find the conversation deleted.
            with contextlib.suppress(OpenAIError):
                await session.aclose()


async def _ended(call: Coroutine[Any, Any, str], emulator: Emulator) -> str:
    """What the call comes to, also if it never would."""
    task = asyncio.create_task(call)
    while not task.done():
        await asyncio.wait({task}, timeout=0.05)
        if len(emulator.requests) > ENDLESS:
            task.cancel()
            await asyncio.wait({task})
            return "does not end"
    return task.result()


async def _call(session: Any, operation: Operation) -> str:
    try:
        match operation:
            case "create":
                await session.get_items()
            case "append":
                await session.add_items([{"role": "user", "content": text} for text in BATCH])
            case "read":
                return _read([text_of(item) for item in await session.get_items()])
            case "pop":
                item = await session.pop_item()
                right = item is not None and text_of(item) == str(BEFORE["pop"] - 1)
                return "returns the item" if right else "returns no item"
            case "clear":
                await session.clear_session()
    # Whatever it is: the table names it.
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "returns"


def _read(texts: list[str]) -> str:
    expected = list(map(str, range(BEFORE["read"])))
    if texts == expected:
        return "returns all items"
    if not texts:
        return "returns nothing"
    counts = Counter(texts)
    if max(counts.values()) > 1:
        return "returns items twice"
    return "returns a part" if len(texts) < len(expected) else "returns another history"


def _left_behind(witness: Witness, operation: Operation, conversation: str | None) -> str:
    if operation == "create":
        made = len(witness.made)
        return f"{_NUMBERS[made]} conversation{'' if made == 1 else 's'}"
    assert conversation is not None  # only a create begins without one
    try:
        texts = [text_of(item) for item in witness.items(conversation)]
    except LookupError:
        return "deleted"
    if operation == "clear":
        return "not deleted"
    if operation == "pop":
        return f"{_NUMBERS[BEFORE['pop'] - len(texts)]} item removed"
    first, *others = (texts.count(text) for text in BATCH)
    if set(others) == {first}:
        return f"stored {_TIMES[first]}" if first else "not stored"
    return f"first item stored {_TIMES[first]}, the others {_TIMES[others[0]]}"


_NUMBERS: Final = ("no", "one", "two", "three", "four", "five")
_TIMES: Final = ("never", "once", "twice", "three times", "four times", "five times")
