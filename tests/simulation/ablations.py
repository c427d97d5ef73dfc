"""The safeguards, switched off one at a time: the campaign must notice each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cached_session import appending, operation, replica, turns
from cached_session.core import history, matching, unsettled

Ablation = Callable[[pytest.MonkeyPatch], None]


def no_reconciliation(patch: pytest.MonkeyPatch) -> None:
    """A lost answer is taken for a refusal: the batch is sent again."""

    async def send_again(self: Any) -> None:
        self._in_doubt = False
        self._replica.unsettled.reopen(())

    patch.setattr(appending.Append, "_reconcile", send_again)


def no_anchor(patch: pytest.MonkeyPatch) -> None:
    """What stands before a batch is not remembered: any equal item will do."""

    def begin(self: Any, items: Any, *, complete: bool) -> None:
        if not self.active:
            self._known, self._anchors, self._from_start = set(), (), True

    def behind(self: Any, items: Any, reached_start: bool) -> Any:
        return items

    patch.setattr(unsettled.Unsettled, "begin", begin)
    patch.setattr(unsettled.Unsettled, "_behind_anchor", behind)


def no_verified_mark(patch: pytest.MonkeyPatch) -> None:
    """A check trusts what this process appended: it lists from the newest item held."""
    append = history.History.append

    def append_and_trust(self: Any, items: Any) -> None:
        append(self, items)
        self.verified = len(self.items)

    patch.setattr(history.History, "append", append_and_trust)


def no_late_commit_watch(patch: pytest.MonkeyPatch) -> None:
    """A send is forgotten as soon as a listing has decided about its batch."""
    settle = unsettled.Unsettled.settle

    def settle_and_forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        landed = settle(self, *args, **kwargs)
        self._sends.clear()
        return landed

    patch.setattr(unsettled.Unsettled, "settle", settle_and_forget)


def no_shielding(patch: pytest.MonkeyPatch) -> None:
    """A caller's cancellation reaches the request in flight."""

    async def directly(self: Any, operation: Any, turn: turns.Turn, write: Any) -> Any:
        try:
            return await write()
        finally:
            self.leave(turn)

    patch.setattr(replica.Replica, "_write", directly)


def no_ordering(patch: pytest.MonkeyPatch) -> None:
    """Everyone works on the conversation at the same time."""

    async def enter(self: Any, deadline: float, conversation_id: str) -> turns.Turn:
        return turns.Turn(self, asyncio.get_running_loop())

    patch.setattr(turns.Turns, "enter", enter)
    # Everybody's turn counts: one that does not is taken for one that was lost.
    patch.setattr(turns.Turn, "current", property(lambda self: True))
    patch.setattr(operation.Operation, "check_turn", lambda self: None)


def equal_texts_alone(patch: pytest.MonkeyPatch) -> None:
    """An item with another text is taken for another writer's, whatever a server may rewrite."""

    def match(self: Any, sent: Any, item: Any, listed: Any, rewriting: Any) -> matching.Match:
        found = matching.compare(item, listed)
        return matching.Match.OTHER if found is matching.Match.UNCLEAR else found

    patch.setattr(unsettled.Unsettled, "_match", match)


ABLATIONS: list[Ablation] = [
    no_reconciliation,
    no_anchor,
    no_verified_mark,
    no_late_commit_watch,
    no_shielding,
    no_ordering,
]
