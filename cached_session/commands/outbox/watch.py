"""A live table of an outbox: what waits, for how long, and what keeps it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cached_session.commands.outbox.records import (
    aligned,
    fitting,
    overview,
    state_and_error,
    visible,
)
from cached_session.commands.outbox.signals import signals
from cached_session.errors import OutboxUnavailable, counted, verb
from cached_session.outbox import BacklogSummary
from cached_session.outbox.admin import OutboxAdmin

_HEAD = ("number", "conversation", "items", "bytes", "oldest", "state", "last error")


async def watch(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    """Shows the backlogs, and how they change, until Ctrl-C; once where there is no terminal.

    An engine that goes away is said, and waited for.

    Raises:
        OutboxError: The outbox cannot be read.
        OSError: The standard output cannot be written.
    """
    console = Console(highlight=False)
    found = await _chosen(admin, options)
    if not console.is_terminal:
        print("\n".join(aligned([_HEAD, *map(_line, found)])))
        return
    stop, trouble = asyncio.Event(), ""
    with signals(stop), Live(console=console, auto_refresh=False, screen=True) as live:
        while not stop.is_set():
            live.update(_page(admin.name, found, trouble, console.width), refresh=True)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), options.every)
            try:
                found, trouble = await _chosen(admin, options), ""
            except OutboxUnavailable as error:
                trouble = str(error)
    # How it was at last stays to be read.
    console.print(_page(admin.name, found, trouble, console.width))


async def _chosen(admin: OutboxAdmin, options: argparse.Namespace) -> list[BacklogSummary]:
    """What waits, first what somebody has to decide about, and then the oldest."""
    found = [one for one in await admin.backlogs() if options.all or one.items or one.paused]
    return sorted(found, key=lambda one: (one.paused is None, one.oldest or time.time()))


def _line(summary: BacklogSummary) -> tuple[str, ...]:
    *cells, _ = overview(summary)
    return (*cells, *state_and_error(summary))


def _page(name: str, found: Sequence[BacklogSummary], trouble: str, width: int) -> Group:
    items, paused = sum(one.items for one in found), sum(one.paused is not None for one in found)
    waiting = sum(one.items > 0 for one in found)
    said = (
        f"{visible(name)}, {time.strftime('%H:%M:%S', time.gmtime())} UTC: "
        f"{counted(waiting, 'conversation')} {verb(waiting, 'waits', 'wait')}, {paused} paused; "
        f"{counted(items)}. Ctrl-C ends."
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    head, *lines = fitting([_HEAD, *map(_line, found)], width)
    for column in head:
        table.add_column(column, no_wrap=True)
    for one, line in zip(found, lines, strict=True):
        style = "red" if one.paused is not None else "green" if one.owned and one.items else ""
        # As text: what is in it is no markup.
        table.add_row(*(Text(cell, style=style) for cell in line))
    return Group(Text(said), Text(visible(trouble), style="red"), table)
