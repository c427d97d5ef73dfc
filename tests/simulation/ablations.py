"""The safeguards, switched off one at a time: the campaign must notice each."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cached_session.conversation import listing, operation, order, turns
from cached_session.core import history, ledger, matching, unsettled
from tests.simulation.campaign import Failure
from tests.simulation.ledger import Violation

Ablation = Callable[[pytest.MonkeyPatch], None]


def no_reconciliation(patch: pytest.MonkeyPatch) -> None:
    """A lost answer is taken for a refusal: the batch is sent again."""
    patch.setitem(ledger.TRANSITIONS[ledger.Front.FLYING], ledger.Event.LOST, ledger.Front.SEALED)


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

    async def directly(self: Any, operation: Any, turn: turns.Turn, work: Any, **_: Any) -> Any:
        try:
            return await work()
        finally:
            self.leave(turn)

    patch.setattr(order.Order, "write", directly)


def no_ordering(patch: pytest.MonkeyPatch) -> None:
    """Everyone works on the conversation at the same time."""
    at_work: Counter[ledger.Ledger] = Counter()

    async def enter(self: Any, caller: operation.Operation) -> turns.Turn:
        if caller.superseded():
            raise operation.Superseded
        at_work[self.ledger] += 1
        return turns.Turn(self.turns, asyncio.get_running_loop())

    def leave(self: Any, turn: turns.Turn) -> None:
        at_work[self.ledger] -= 1
        self._worked()

    patch.setattr(order.Order, "enter", enter)
    patch.setattr(order.Order, "leave", leave)
    # They would stop at an `assert`, or with an IndexError, before the account sees what
    # they do to each other. So what is known is taken away by those only who are alone at
    # work, and two may delete the same late copies.
    forget, forget_all = ledger.Ledger.forget, ledger.Ledger.forget_all
    remove = listing.remove_late_copies

    def forget_alone(self: Any) -> None:
        if at_work[self] < 2:
            forget(self)

    def forget_all_alone(self: Any) -> None:
        if not at_work[self]:
            forget_all(self)

    async def remove_both(*arguments: Any) -> None:
        with contextlib.suppress(IndexError, ValueError):
            await remove(*arguments)

    patch.setattr(ledger.Ledger, "forget", forget_alone)
    patch.setattr(ledger.Ledger, "forget_all", forget_all_alone)
    patch.setattr(listing, "remove_late_copies", remove_both)


def equal_texts_alone(patch: pytest.MonkeyPatch) -> None:
    """An item with another text is taken for another writer's, whatever a server may rewrite."""

    def match(self: Any, sent: Any, item: Any, listed: Any, rewriting: Any) -> matching.Match:
        found = matching.compare(item, listed)
        return matching.Match.OTHER if found is matching.Match.UNCLEAR else found

    patch.setattr(unsettled.Unsettled, "_match", match)


DOUBLED = "on the server more often than appended"
LOST = "appended, never removed, not on the server"
UNTRUE = "a read .* shows what the server never held"
HALF = "a cancelled append is half applied"

ABLATIONS: dict[Ablation, str] = {
    no_reconciliation: DOUBLED,
    no_anchor: f"{DOUBLED}|{LOST}|{UNTRUE}",
    no_verified_mark: UNTRUE,
    no_late_commit_watch: DOUBLED,
    no_shielding: HALF,
    no_ordering: f"{DOUBLED}|{UNTRUE}",
}
"""The safeguards, and as what the account notices that one is missing."""


def notices(violation: str, play: Callable[[], object]) -> None:
    """What is played ends with a violation of this kind, and with nothing else."""
    with pytest.raises(Failure) as failed:
        play()
    cause = failed.value.__cause__
    # An error of the product, or of the ablation itself, shows nothing of the account.
    assert isinstance(cause, Violation), f"{failed.value}, which is a {type(cause).__name__}"
    assert re.search(violation, str(cause)), failed.value
