"""Sending what others have left: backlogs of an account that wait while their owner is gone.

A process may end, or an event loop, and nobody come back to the conversation. Whoever
uses the outbox for another one sends that, too: a few backlogs at a time, each as one that
closed sessions have left. A call of a session begins a look, and nothing looks while
nothing waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple, Protocol

from openai import AsyncOpenAI

from cached_session.conversation.backlog import Backlog
from cached_session.conversation.operation import Operation
from cached_session.conversation.record import address_of, owner_of, speaks_for
from cached_session.conversation.tasks import Signal, cancel, forsake, lost
from cached_session.core.looking import LOOK_AFTER
from cached_session.errors import OutboxError
from cached_session.events import Meter, logger
from cached_session.outbox import Outbox
from cached_session.outbox.log import Orphan
from cached_session.outbox.records import Address
from cached_session.server.connections import Account, account
from cached_session.server.remote import Remote
from cached_session.server.retrying import RetryPolicy
from cached_session.session.cache import ConversationCache

AGAIN_AFTER = 5.0
"""Seconds between two looks, but for those after something was sent."""

SURE_AFTER = LOOK_AFTER
"""Seconds after which nobody is about to claim what nobody has claimed meanwhile."""

# How many backlogs are sent at a time, and how many are looked at.
_AT_ONCE, _AT_A_LOOK = 4, 64


class Means(NamedTuple):
    """Through what is sent.

    Attributes:
        outbox: Where it is recorded.
        client: The client.
        cache: Where the copies of the conversations are.
        policy: How requests are repeated.
        meter: Who counts them, and is told of what happens.
    """

    outbox: Outbox
    client: AsyncOpenAI
    cache: ConversationCache
    policy: RetryPolicy
    meter: Meter


class User(Protocol):
    """A session that uses the outbox."""

    @property
    def means(self) -> Means | None:
        """Through what it sends; None: it uses the outbox no more."""


class Adopter:
    """Who adopts what is left of one account in one outbox, in this process."""

    def __init__(self, home: Address) -> None:
        """Makes one, which does nothing yet.

        Args:
            home: An address of the account; its conversation does not count.
        """
        self._home = home
        self._lock = threading.Lock()
        self._users: weakref.WeakSet[User] = weakref.WeakSet()
        self._sweeping: asyncio.Task[None] | None = None
        # Fired when a look has ended, and when a backlog begins to be sent.
        self._changed = Signal()
        # When the last look was, on the clock of the loop that it was on.
        self._looked = -math.inf
        # When each orphan was first seen unchanged, and when each address was tried last.
        self._seen: dict[Orphan, float] = {}
        self._tried: dict[Address, float] = {}
        # Stands for the look that a timer begins. Another timer, or `hold_off`, replaces it, and
        # the first one then does nothing.
        self._next: object = None
        # How many callers of `hold_off` have not called `go_on` yet.
        self._held_off = 0
        # The backlogs that are being sent, and how many items of each were delivered before.
        self._at_work: dict[object, tuple[Backlog, int]] = {}
        self._sent = 0

    @property
    def sent(self) -> int:
        """How many items of what was adopted were put on the server, or found there."""
        with self._lock:
            return self._sent + sum(
                one.order.ledger.delivered - before for one, before in self._at_work.values()
            )

    @property
    def unused(self) -> bool:
        """Whether no open session has a place for it, and nothing is being sent."""
        with self._lock:
            return not self._users and (self._sweeping is None or lost(self._sweeping))

    @property
    def unsure(self) -> bool:
        """Whether the last look found something that somebody may be about to send."""
        return bool(self._seen)

    # The sessions

    def come(self, user: User) -> None:
        """Notes a session that uses the outbox."""
        with self._lock:
            self._users.add(user)
        self._changed.fire()

    async def looked(self, user: User) -> None:
        """Waits for a look on this event loop, for the last session that is open, before it leaves.

        Or there would be no look where each session is open for one call: it has nothing to send
        through without one. Where the outbox does not answer it is not waited for.
        """
        with self._lock:
            task = self._sweeping

        def rests() -> bool:
            with self._lock:
                others = any(one is not user for one in self._users)
                return others or task is None or task.done() or bool(self._at_work)

        loop = asyncio.get_running_loop()
        if task is not None and task.get_loop() is loop:
            await self._changed.until(rests, loop.time() + LOOK_AFTER, _nothing)

    def leave(self, user: User) -> None:
        """Notes that a session is closed. The last one leaves no look behind, only what is sent."""
        with self._lock:
            self._users.discard(user)
            if self._sweeping is not None and not (self._users or self._at_work):
                cancel(self._sweeping)

    def used(self) -> None:
        """Has somebody look, behind a call that has ended, if nobody has for a while."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._sweeping is not None and self._sweeping.get_loop().is_closed():
                self._sweeping = None  # or it would hold that loop
            if not self._looked <= loop.time() < self._looked + AGAIN_AFTER:
                self._begin(loop)

    def _means(self) -> Means | None:
        with self._lock:
            users = [] if self._held_off else list(self._users)
        for user in users:
            means = user.means
            if means is not None and speaks_for(account(means.client), means.outbox, self._home):
                return means
        return None

    # When it looks

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._held_off or not self._users:
            return
        if self._sweeping is not None and not lost(self._sweeping):
            return
        # In a context of its own, as `Sender.start`: it does not send for the present caller.
        self._sweeping = task = contextvars.Context().run(
            loop.create_task, self._look_around(), name="outbox, what others have left"
        )
        task.add_done_callback(lambda _: self._changed.fire())
        # Where its loop ends first, the next use of a session looks again.
        forsake(task)

    async def _look_around(self) -> None:
        # The call that has begun this goes on first, as in `Sender`.
        for _ in range(8):
            await asyncio.sleep(0)
        try:
            again = await self.sweep(self._means, AGAIN_AFTER)
        except OutboxError as error:
            # Calls of sessions meet the same error, and raise it.
            logger.debug("what others have left was not looked for: %s", error)
            return
        if again is not None:
            loop, mine = asyncio.get_running_loop(), object()
            self._next = mine
            # A timer, and no task: a loop that ends need not cancel it.
            loop.call_later(again, self._again, loop, mine)

    def _again(self, loop: asyncio.AbstractEventLoop, mine: object) -> None:
        with self._lock:
            if self._next is mine:
                self._begin(loop)

    def hold_off(self) -> None:
        """Has it look for nothing from now on, until `go_on`. What it has adopted is sent on."""
        with self._lock:
            self._held_off += 1
            # No timer goes on after `go_on`: the next use of a session looks again.
            self._next = None
            if self._sweeping is not None:
                cancel(self._sweeping)

    async def ended(self) -> None:
        """Waits until nobody looks, on whichever event loop."""
        task = self._sweeping
        if task is not None:
            await self._changed.until(lambda: lost(task), math.inf, _nothing)

    def go_on(self) -> None:
        """Lets it look again."""
        with self._lock:
            self._held_off -= 1

    # What it does

    async def sweep(self, means: Callable[[], Means | None], every: float) -> float | None:
        """Sends what can be adopted; returns when nothing of that is left.

        Args:
            means: Says through what; None: nothing is adopted any more.
            every: Seconds after which it looks again, while something is being sent.

        Returns:
            Seconds after which to look again, as more of the account waits that may be left by
            then; None: nothing does.

        Raises:
            OutboxError: The outbox could not be read. What was adopted is sent on.
        """
        loop, again = asyncio.get_running_loop(), None
        working: set[asyncio.Task[None]] = set()
        try:
            while True:
                room, through = _AT_ONCE - len(working), means()
                if room and through is not None:
                    found, again = await self._look(through, every)
                    for address in found[:room]:
                        self._tried[address] = loop.time()
                        working.add(task := loop.create_task(self._send(through, address)))
                        # Where its loop stops, the next look finds the backlog again.
                        forsake(task)
                if not working:
                    return again
                _, working = await asyncio.wait(
                    working, timeout=again, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in working:
                cancel(task)

    async def _look(self, means: Means, every: float) -> tuple[list[Address], float | None]:
        """What nobody sends, and seconds after which to look again; None: nothing else waits."""
        now = self._looked = asyncio.get_running_loop().time()
        # An address is tried once in so many seconds, whatever became of it.
        self._tried = {one: at for one, at in self._tried.items() if at <= now < at + every}
        beside, before = frozenset(self._tried), self._seen
        orphans = await means.outbox.consult(
            lambda log: log.orphans(self._home, beside, _AT_A_LOOK)
        )
        # Only what was seen for a while: a worker claims what it has recorded a moment later, and
        # one that uses the conversation comes first.
        self._seen = {one: min(now, before.get(one, now)) for one in orphans.found}
        left = [one.address for one, at in self._seen.items() if at + SURE_AFTER <= now]
        if len(left) < len(orphans.found):
            return left, min(SURE_AFTER, every)
        return left, every if left or orphans.others else None

    async def _send(self, means: Means, address: Address) -> None:
        client = account(means.client)
        if not speaks_for(client, means.outbox, address):
            return  # its key was changed just now
        try:
            backlog = _backlog(means, client, address)
        except ValueError:
            return  # somebody has come to it just now, who has it in another cache
        if backlog is None:
            return
        ledger, work = backlog.order.ledger, object()
        operation = Operation(
            Remote(means.client, means.meter),
            means.policy,
            means.meter,
            ledger.conversation_id,
            Operation.now() + means.policy.deadline,
        )
        with self._lock:
            self._at_work[work] = backlog, ledger.delivered
        self._changed.fire()
        try:
            await backlog.adopt(operation)
        finally:
            with self._lock:
                self._sent += ledger.delivered - self._at_work.pop(work)[1]


def adopter_of(outbox: Outbox, owner: Account, user: User) -> Adopter | None:
    """Who adopts in an outbox for an account, as a session needs it that comes to the outbox.

    None where nobody does: what is in memory is left to nobody, and a client whose key is not
    fixed cannot tell what is its account's.
    """
    home = address_of(owner, "")
    if not outbox.durable or not home.credentials:
        return None
    with outbox.lock:
        for other in [other for other, one in outbox.adopters.items() if one.unused]:
            if other != home:
                del outbox.adopters[other]
        adopter: Adopter = outbox.adopters.setdefault(home, Adopter(home))
        adopter.come(user)
    return adopter


def _backlog(means: Means, client: Account, address: Address) -> Backlog | None:
    """The backlog of an address, as a session on it would have it; None: it is another outbox's."""
    outbox = means.outbox
    with outbox.lock:
        backlog: Backlog | None = outbox.backlogs.get(address)
    if backlog is not None:
        return backlog
    owner = owner_of(outbox, client)
    conversation = means.cache.conversation(owner, address.conversation, client=client)
    other = conversation.backlog
    if other is not None and (other.users or other.sender.busy):
        return None
    conversation.attach(outbox, owner, None)
    return conversation.backlog


def _nothing() -> None:
    """Nothing is to be done while it ends."""
