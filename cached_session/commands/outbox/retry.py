"""Sending a backlog now, from here, unless a living process does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
from collections.abc import AsyncIterator

from openai import AsyncOpenAI

from cached_session.commands.outbox.records import Stop, key, server, visible
from cached_session.conversation.record import address_of, owner_of
from cached_session.errors import counted, verb
from cached_session.outbox import Address, BacklogSummary, Outbox
from cached_session.outbox.admin import OutboxAdmin
from cached_session.server.connections import account
from cached_session.session.cache import ConversationCache
from cached_session.session.session import CachedSession


async def retry(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    """Clears the pause, and sends what waits if nobody else does.

    Raises:
        Stop: It is not the present account's.
        CachedSessionError: There is no such backlog, or not all of it is on the server; what is
            not, is kept.
        OpenAIError: The server could not be asked what is still in doubt.
    """
    summary = await admin.backlog(options.number)
    if summary.owned or not summary.items:
        summary = await admin.retry(options.number)
    if not summary.items:
        print(f"Nothing waits in backlog {summary.number}.")
        return
    if summary.owned and summary.paused is None:
        print(f"A living process sends backlog {summary.number} by itself. Nothing was changed.")
        return
    if summary.owned:
        print(f"A living process has backlog {summary.number}. It goes on at its next use.")
        return
    need_key("retry")
    outbox, recorded, number = admin.outbox, summary.address, summary.number
    async with AsyncOpenAI(base_url=options.base_url or recorded.base_url) as client:
        theirs = client.organization, client.project
        own = as_recorded(client, outbox, recorded)
        if own.credentials != recorded.credentials:
            if not options.any_account:
                raise Stop(_another_account(summary))
            client.organization, client.project = theirs
            own = address_of(owner_of(outbox, account(client)), recorded.conversation)
        if own != recorded:
            number = (await admin.move(number, own)).number
        await admin.retry(number)
        try:
            await _send(admin, client, own.conversation, number, summary.items, options.timeout)
        finally:
            # Before the client is closed: nothing is sent for a command that has ended.
            await outbox.aclose()


async def fits(recorded: Address) -> bool | None:
    """Whether a backlog was recorded with the key in OPENAI_API_KEY; None: it cannot be told."""
    unknown = not recorded.credentials or recorded.account is not None
    if unknown or not os.environ.get("OPENAI_API_KEY"):
        return None
    async with AsyncOpenAI(base_url=recorded.base_url) as client:
        return as_recorded(client, None, recorded).credentials == recorded.credentials


def need_key(what: str) -> None:
    """Raises `Stop` if there is no key to use."""
    if not os.environ.get("OPENAI_API_KEY"):
        raise Stop(f"{what} needs an API key in the environment variable OPENAI_API_KEY.")


def as_recorded(client: AsyncOpenAI, outbox: Outbox | None, recorded: Address) -> Address:
    """Gives a client the recorded organisation and project; where it finds the backlog then."""
    client.organization = recorded.organization or None
    client.project = recorded.project or None
    own = account(client)
    return address_of(own if outbox is None else owner_of(outbox, own), recorded.conversation)


def _another_account(summary: BacklogSummary) -> str:
    name = summary.address.account
    if name is not None:
        return (
            f"backlog {summary.number} was recorded for the account {name!r}. Nothing was changed. "
            f"Give --account {shlex.quote(name)} if the key in OPENAI_API_KEY is one of that "
            "account, or --any-account to move the backlog to the present account and send it "
            "there."
        )
    if not summary.address.credentials:
        what = (
            "was recorded by a client without a fixed key, and nothing tells whether the key in "
            "OPENAI_API_KEY is for the same account"
        )
    else:
        what = (
            f"was recorded with another key ({key(summary.address)}) than the one in "
            "OPENAI_API_KEY, or with headers of the client's own"
        )
    return (
        f"backlog {summary.number} {what}. Nothing was changed. Give the recorded account's key, "
        "or --any-account to move the backlog to the present account and send it there."
    )


async def _send(
    admin: OutboxAdmin, client: AsyncOpenAI, name: str, number: int, total: int, timeout: float
) -> None:
    cache = ConversationCache()
    session = CachedSession(
        conversation_id=name, openai_client=client, outbox=admin.outbox, cache=cache
    )
    to = visible(server(str(client.base_url)))
    print(f"Sending {counted(total, 'item')} to {to}", flush=True)
    async with session, _progress(session):
        try:
            await session.flush(timeout)
        except Exception:
            # The outbox is told later what has landed. A session that cannot read it knows nothing.
            found = await admin.backlogs()
            left = session.stats.waiting or sum(one.items for one in found if one.number == number)
            waits = verb(left, "waits", "wait")
            print(f"{_landed(max(0, total - left))}, {left} {waits}.", flush=True)
            raise
        print(f"{_landed(total)} in {session.session_id}, none waits.")


def _landed(number: int) -> str:
    return f"{counted(number, 'item')} {verb(number, 'has', 'have')} landed"


@contextlib.asynccontextmanager
async def _progress(session: CachedSession) -> AsyncIterator[None]:
    """Prints every second how many items are left, where that has changed."""

    async def report() -> None:
        shown = None
        while True:
            await asyncio.sleep(1)
            stats = session.stats
            if (now := (stats.waiting, stats.sending)) != shown:
                shown = now
                waits = verb(stats.waiting, "waits", "wait")
                print(f"{counted(stats.waiting, 'item')} {waits} ({stats.sending})", flush=True)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        # If nobody reads its output any more it has failed, which is nothing to tell of.
        task.cancel()
        await asyncio.wait({task})
