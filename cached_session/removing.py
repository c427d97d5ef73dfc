"""Removing the newest item of a conversation. In its turn."""

from __future__ import annotations

import functools
import math
from contextlib import suppress
from typing import Any

from cached_session.core.history import History
from cached_session.core.items import unhold
from cached_session.core.outcomes import Applied, Unknown
from cached_session.errors import OutboxError, UnexpectedAnswer
from cached_session.operation import Operation, is_gone
from cached_session.window import RESTARTS, Window


async def remove_newest(
    window: Window, operation: Operation, history: History
) -> dict[str, Any] | None:
    """Removes and returns the newest item; None if there is none.

    Args:
        window: What is held of the conversation.
        operation: The caller's.
        history: Its items, up to date.
    """
    # Each round that another writer was faster ends with a new listing.
    for _ in range(RESTARTS):
        if not len(history):
            return None
        last = history.items[-1]
        if await _delete(window, operation, last.id):
            history.drop_last()
            window.removed += 1
            if window.recording is not None:
                # The next process must not find it in what is kept. Nor must
                # the item be lost on its way to the caller.
                with suppress(OutboxError):
                    await window.recording()
            # The service may list an item twice; then nothing here says
            # whether one of them or both went.
            if any(item.id == last.id for item in history.items) or not (
                len(history) or history.complete
            ):
                window.forget()
            return unhold(last)
        window.forget()
        history = await window.fresh(operation, 1, 0, -math.inf)
    raise UnexpectedAnswer(
        f"{window.conversation_id}: the newest item was gone at every attempt to remove it; "
        "nothing was removed",
        conversation_id=window.conversation_id,
    )


async def _delete(window: Window, operation: Operation, item_id: str) -> bool:
    """Deletes an item; False if somebody else had."""
    doubt = functools.partial(window.doubt_removal, operation, item_id)
    with window.doubting(doubt):
        outcome = await operation.delete_item(item_id)
    if isinstance(outcome, Applied):
        return True
    if is_gone(outcome):
        return False
    if isinstance(outcome, Unknown):
        doubt()
        outcome.error.add_note(
            f"{window.conversation_id}: whether the item was removed is not known; "
            "the next read shows it"
        )
    raise outcome.error
