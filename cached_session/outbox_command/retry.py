"""Sending a backlog now, from here, unless a living process does."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from openai import AsyncOpenAI

from cached_session.attaching import address_of
from cached_session.cache import ConversationCache
from cached_session.connections import account
from cached_session.outbox import SQLiteOutbox, Store, Summary
from cached_session.outbox_command.records import Stop, find, visible
from cached_session.session import CachedSession


async def retry(outbox: SQLiteOutbox, options: argparse.Namespace) -> None:
    """Clears the pause, and sends what waits if nobody else does.

    Raises:
        Stop: There is no such backlog, or it is not the present account's.
        CachedSessionError: Not all of it is on the server; what is not, is kept.
        OpenAIError: The server could not be asked what is still in doubt.
    """

    def resume(store: Store) -> Summary:
        summary = find(store, options)
        if summary.owned or not summary.items:
            store.resume(summary.address)
        return summary

    summary = await outbox.transact(resume)
    if summary.owned:
        print(f"A living process has backlog {summary.number}. It goes on at its next use.")
        return
    if not summary.items:
        print(f"Nothing waits in backlog {summary.number}.")
        return
    if not os.environ.get("OPENAI_API_KEY"):
        raise Stop("retry needs an API key in the environment variable OPENAI_API_KEY.")
    recorded = summary.address
    async with AsyncOpenAI(base_url=options.base_url or recorded.base_url) as client:
        theirs = client.organization, client.project
        client.organization = recorded.organization or None
        client.project = recorded.project or None
        own = address_of(account(client), recorded.conversation)
        if own.credentials != recorded.credentials:
            if not options.any_account:
                raise Stop(_another_account(summary))
            client.organization, client.project = theirs
            own = address_of(account(client), recorded.conversation)

        def prepare(store: Store) -> None:
            if own != recorded:
                store.move(recorded, own)
            store.resume(own)

        await outbox.transact(prepare)
        await _send(outbox, client, own.conversation, summary.items, options.timeout)


def _another_account(summary: Summary) -> str:
    if not summary.address.credentials:
        what = (
            "was recorded by a client without a fixed key, and nothing tells whether the key in "
            "OPENAI_API_KEY is for the same account"
        )
    else:
        what = (
            "was recorded with another key than the one in OPENAI_API_KEY, or with headers of the "
            "client's own"
        )
    return (
        f"backlog {summary.number} {what}. Nothing was changed. Give the recorded account's key, "
        "or --any-account to move the backlog to the present account and send it there."
    )


async def _send(
    outbox: SQLiteOutbox, client: AsyncOpenAI, name: str, total: int, timeout: float
) -> None:
    session = CachedSession(
        conversation_id=name, openai_client=client, outbox=outbox, cache=ConversationCache()
    )
    print(f"Sending {total} items to {visible(str(client.base_url))}", flush=True)
    async with session, _progress(session):
        try:
            await session.flush(timeout)
        except Exception:
            left = session.stats.waiting
            print(f"{max(0, total - left)} items have landed, {left} wait.", flush=True)
            raise
        print(f"{total} items have landed in {session.session_id}, none waits.")


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
                print(f"{stats.waiting} items wait ({stats.sending})", flush=True)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
