"""Changing whose a backlog is."""

from __future__ import annotations

import argparse

from openai import AsyncOpenAI

from cached_session.commands.outbox.records import conversation
from cached_session.commands.outbox.retry import as_recorded, need_key
from cached_session.errors import counted, verb
from cached_session.outbox import Address
from cached_session.outbox.admin import OutboxAdmin
from cached_session.outbox.records import whose


async def move(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    """Moves a backlog to a named account, or to that of the key in OPENAI_API_KEY.

    Raises:
        Stop: There is no key.
        OutboxError: There is no such backlog, a living process has it, or the other account has
            a backlog of the conversation. Nothing was changed.
    """
    moved = await admin.backlog(options.number)
    if moved.items:
        to = options.account or await _own(moved.address, admin)
        moved = await admin.move(options.number, to)
    if not moved.items:
        print(f"Nothing waits in backlog {moved.number}.")
        return
    print(
        f"{counted(moved.items, 'item')} for {conversation(moved.address)} "
        f"{verb(moved.items, 'waits', 'wait')} in backlog {moved.number} now, which is that of "
        f"{whose(moved.address)}."
    )
    if moved.paused is not None:
        print(f"It is paused: {moved.paused}. `retry` clears the pause.")


async def _own(recorded: Address, admin: OutboxAdmin) -> Address:
    need_key("move without --account")
    async with AsyncOpenAI(base_url=recorded.base_url) as client:
        return as_recorded(client, admin.outbox, recorded)
