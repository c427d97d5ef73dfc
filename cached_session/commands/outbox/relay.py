"""A process that sends what nobody who lives sends, until it is stopped."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator

from openai import AsyncOpenAI

from cached_session.commands.outbox.records import Stop, key, server, visible
from cached_session.commands.outbox.retry import need_key
from cached_session.commands.outbox.signals import signals
from cached_session.errors import OutboxUnavailable, counted, verb
from cached_session.events import logger
from cached_session.outbox.admin import OutboxAdmin
from cached_session.session.relay import Relay, Standing

LEFT = 3
"""The exit status of `--once` where something is left."""

_AWAY = "the engine cannot be reached"

# Seconds between two lines that say how it stands.
_LINE_AFTER = 60.0


async def relay(admin: OutboxAdmin, options: argparse.Namespace) -> int:
    """Sends what is left in the outbox, and what will be, until a signal; or what there is now.

    Returns:
        The exit status.

    Raises:
        Stop: There is no key, or no server.
        OutboxError: The outbox cannot be used.
    """
    need_key("relay")
    stop = asyncio.Event()
    with signals(stop), _logging(quiet=options.quiet):
        async with AsyncOpenAI() as client:
            try:
                made = Relay(admin.outbox, client)
            except ValueError:
                raise Stop("the base URL in OPENAI_BASE_URL is not that of a server.") from None
            try:
                return await run(made, admin.name, stop, options)
            except OutboxUnavailable:
                if options.once or not stop.is_set():
                    raise
                # It waits no longer. What is left cannot be read, and stays recorded.
                if not options.quiet:
                    print(f"Stopped: {_AWAY}; {counted(made.sent, 'item')} sent in all.")
                return 0


async def run(made: Relay, name: str, stop: asyncio.Event, options: argparse.Namespace) -> int:
    """Runs a relay until it is stopped, or with `once` until nothing is left that can be sent.

    Returns:
        The exit status.

    Raises:
        OutboxError: The outbox cannot be used any more.
    """
    begun = asyncio.get_running_loop().create_task
    if not options.quiet:
        to = visible(server(made.account.base_url))
        print(f"Sends what is left in {name} to {to} (key: {key(made.account)})", flush=True)
    sending = begun(made.run(every=options.every, once=options.once))
    tasks = {sending, begun(stop.wait())}
    if not options.quiet:
        tasks.add(begun(_tell(made)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not options.quiet:
            # A container's log shows that the signal has come, and how long the end may take.
            print(
                f"Stopping: waits {options.grace:g} s at most for requests in flight.", flush=True
            )
    finally:
        try:
            await made.aclose(options.grace)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()
    found = await made.standing()
    if not options.quiet:
        how = "Stopped" if stop.is_set() else "Done"
        print(f"{how}: {_said(found)}; {counted(made.sent, 'item')} sent in all.")
    return LEFT if options.once and found.waiting else 0


async def _tell(made: Relay) -> None:
    """Says how it stands, once a minute."""
    before = 0
    while True:
        await asyncio.sleep(_LINE_AFTER)
        sent = made.sent
        try:
            said = _said(await made.standing())
        except OutboxUnavailable:
            said = _AWAY
        print(f"{said}; {counted(sent - before, 'item')} sent in the last minute.", flush=True)
        before = sent


def _said(found: Standing) -> str:
    conversations = counted(found.waiting, "conversation")
    said = f"{conversations} {verb(found.waiting, 'waits', 'wait')}, {found.paused} paused"
    return f"{said}, {found.others} of other accounts" if found.others else said


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
