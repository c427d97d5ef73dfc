"""A process that sends what nobody who lives sends, until it is stopped."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Iterator
from typing import NamedTuple

from openai import AsyncOpenAI

from cached_session.commands.outbox.records import Stop, key, server, visible
from cached_session.commands.outbox.retry import need_key
from cached_session.conversation.record import address_of, owner_of
from cached_session.errors import OutboxUnavailable, counted, verb
from cached_session.events import Meter, logger
from cached_session.outbox import Outbox
from cached_session.server.connections import account
from cached_session.server.retrying import RetryPolicy
from cached_session.session.adoption import Adopter, Means
from cached_session.session.arguments import Chosen
from cached_session.session.cache import ConversationCache

LEFT = 3
"""The exit status of `--once` where something is left."""

# Seconds between two lines that say how it stands.
_LINE_AFTER = 60.0


async def relay(outbox: Outbox, options: argparse.Namespace) -> int:
    """Sends what is left in the outbox, and what will be, until a signal; or what there is now.

    Returns:
        The exit status.

    Raises:
        Stop: There is no key, or no server.
        OutboxError: The outbox cannot be used.
    """
    need_key("relay")
    stop = asyncio.Event()
    with _signals(stop), _logging(quiet=options.quiet):
        async with AsyncOpenAI() as client:
            try:
                Chosen(client)
            except ValueError:
                raise Stop("the base URL in OPENAI_BASE_URL is not that of a server.") from None
            return await Relay(outbox, client).run(stop, options)


class Standing(NamedTuple):
    """What waits in the outbox.

    Attributes:
        waiting: Of how many conversations of the account something waits.
        paused: How many of them are paused.
        others: Of how many conversations of other accounts something waits.
    """

    waiting: int
    paused: int
    others: int


class Relay:
    """What it has: an outbox, which it keeps open, a client, and what adopts."""

    def __init__(self, outbox: Outbox, client: AsyncOpenAI) -> None:
        """Makes one, which sends nothing yet."""
        self._outbox = outbox
        self._home = address_of(owner_of(outbox, account(client)), "")
        self._adopter = Adopter(self._home)
        self._means = Means(outbox, client, ConversationCache(), RetryPolicy(), Meter(None))
        self._stopping = False
        # Whether the engine could not be reached at the last look.
        self._away = False
        # As a session does, or the file would be closed whenever nothing is sent.
        outbox.users.add(self)

    async def run(self, stop: asyncio.Event, options: argparse.Namespace) -> int:
        """Runs until it is stopped, or with `once` until nothing is left that can be sent.

        Returns:
            The exit status.

        Raises:
            OutboxError: The outbox cannot be used any more.
        """
        begun = asyncio.get_running_loop().create_task
        if not options.quiet:
            to = visible(server(self._home.base_url))
            print(f"Sends what is left in {options.place.name} to {to} (key: {key(self._home)})")
            sys.stdout.flush()
        sending = begun(self._send(options.every, once=options.once))
        tasks = {sending, begun(stop.wait())}
        if not options.quiet:
            tasks.add(begun(self._tell()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set() and not options.quiet:
                # A container's log shows that the signal has come, and how long the end may take.
                print(f"Stopping: waits {options.grace:g} s at most for requests in flight.")
                sys.stdout.flush()
            await self._settle(options.grace)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._outbox.aclose()
        for task in tasks:
            if not task.cancelled():
                task.result()
        found = await self._standing()
        if not options.quiet:
            how = "Stopped" if stop.is_set() else "Done"
            print(f"{how}: {_said(found)}; {counted(self._adopter.sent, 'item')} sent in all.")
        return LEFT if options.once and found.waiting else 0

    def _through(self) -> Means | None:
        return None if self._stopping else self._means

    async def _send(self, every: float, *, once: bool) -> None:
        while not self._stopping:
            try:
                again = await self._adopter.sweep(self._through, every)
            except OutboxUnavailable as error:
                # The engine comes back, or somebody reads this.
                if not self._away:
                    logger.warning("%s", error)
                self._away, again = True, None
            else:
                if self._away:
                    logger.info("The engine is there again.")
                self._away = False
                if once and not self._adopter.unsure:
                    return
            await asyncio.sleep(every if again is None else min(again, every))

    async def _settle(self, grace: float) -> None:
        """Begins no request any more, and waits for those that are in flight."""
        self._stopping = True
        deadline = asyncio.get_running_loop().time() + grace
        with self._outbox.lock:
            backlogs = [*self._outbox.backlogs.values()]
        await asyncio.gather(*(one.sender.halt(deadline) for one in backlogs))

    async def _tell(self) -> None:
        """Says how it stands, once a minute."""
        before = 0
        while True:
            await asyncio.sleep(_LINE_AFTER)
            sent = self._adopter.sent
            try:
                said = _said(await self._standing())
            except OutboxUnavailable:
                said = "The engine cannot be reached"
            print(f"{said}; {counted(sent - before, 'item')} sent in the last minute.")
            sys.stdout.flush()
            before = sent

    async def _standing(self) -> Standing:
        summaries = await self._outbox.transact(lambda log: log.summaries())
        waiting = [one for one in summaries if one.items]
        ours = [one for one in waiting if one.address[:4] == self._home[:4]]
        paused = sum(one.paused is not None for one in ours)
        return Standing(len(ours), paused, len(waiting) - len(ours))


def _said(found: Standing) -> str:
    conversations = counted(found.waiting, "conversation")
    said = f"{conversations} {verb(found.waiting, 'waits', 'wait')}, {found.paused} paused"
    return f"{said}, {found.others} of other accounts" if found.others else said


@contextlib.contextmanager
def _signals(stop: asyncio.Event) -> Iterator[None]:
    """Within it, what asks a process to end sets the event."""
    loop, asked = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
    for number in asked:
        # Where the loop has no such handlers, Ctrl-C interrupts as everywhere.
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    try:
        yield
    finally:
        for number in asked:
            with contextlib.suppress(NotImplementedError):
                loop.remove_signal_handler(number)


@contextlib.contextmanager
def _logging(*, quiet: bool) -> Iterator[None]:
    """Within it, what the package tells goes to the standard output."""
    handler, level = logging.StreamHandler(sys.stdout), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
