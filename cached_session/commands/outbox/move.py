"""Changing whose a backlog is."""

from __future__ import annotations

import argparse

from openai import AsyncOpenAI

from cached_session.commands.outbox.records import conversation, find
from cached_session.commands.outbox.retry import as_recorded, need_key
from cached_session.errors import counted, verb
from cached_session.outbox import Address, Log, Outbox, Summary
from cached_session.outbox.records import NAMED, whose


async def move(outbox: Outbox, options: argparse.Namespace) -> None:
    """Moves a backlog to a named account, or to that of the key in OPENAI_API_KEY.

    Raises:
        Stop: There is no such backlog, or no key.
        CachedSessionError: A living process has it, or the other account has a
            backlog of the conversation. Nothing was changed.
    """
    summary = await outbox.transact(lambda log: find(log, options))
    if not summary.items:
        print(f"Nothing waits in backlog {summary.number}.")
        return
    to = await _destination(summary.address, outbox, options.account)

    def work(log: Log) -> Summary:
        there = log.move(summary.address, to)
        return next(found for found in log.summaries() if found.address == there)

    moved = await outbox.transact(work)
    print(
        f"{counted(moved.items, 'item')} for {conversation(moved.address)} "
        f"{verb(moved.items, 'waits', 'wait')} in backlog {moved.number} now, which is that of "
        f"{whose(moved.address)}."
    )
    if moved.paused is not None:
        print(f"It is paused: {moved.paused}. `retry` clears the pause.")


async def _destination(recorded: Address, outbox: Outbox, account: str | None) -> Address:
    if account is not None:
        return recorded._replace(credentials=NAMED + account)
    need_key("move without --account")
    async with AsyncOpenAI(base_url=recorded.base_url) as client:
        return as_recorded(client, outbox, recorded)
