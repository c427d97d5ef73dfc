"""Safeguards, switched off one at a time in a worker: the campaign must notice each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cached_session.conversation import delivery, listing
from cached_session.core.unsettled import Unsettled
from cached_session.outbox.sqlite import statements


def doubt_not_restored() -> None:
    """A process that takes over does not know that anything may have been sent."""
    Unsettled.restore = lambda *_, **__: None  # type: ignore[method-assign]


def late_copies_not_watched() -> None:
    """A process that takes over asks what landed, and forgets that it may land once more."""
    settle = Unsettled.settle

    def settle_and_forget(self: Any, *args: Any, **kwargs: Any) -> Any:
        landed = settle(self, *args, **kwargs)
        self._sends.clear()
        return landed

    Unsettled.settle = settle_and_forget  # type: ignore[method-assign]


def not_sealed() -> None:
    """It is not recorded which items may have been sent."""
    statements.SEAL = "UPDATE items SET sealed = 0 WHERE conversation = ? AND seq <= ?"
    statements.ROWS_SEALED = f"{statements.ROWS} WHERE conversation = ? ORDER BY seq LIMIT 20"
    statements.LANDED = "DELETE FROM items WHERE conversation = ? AND seq <= ?"


def removals_not_recorded() -> None:
    """A process that takes over does not know which late copies were being deleted."""
    remove = listing.remove_late_copies

    async def remove_at_once(ledger: Any, record: Any, operation: Any) -> None:
        await remove(ledger, None, operation)

    for module in (listing, delivery):
        module.remove_late_copies = remove_at_once


ABLATIONS: dict[str, Callable[[], None]] = {
    ablation.__name__: ablation
    for ablation in (
        doubt_not_restored,
        late_copies_not_watched,
        not_sealed,
        removals_not_recorded,
    )
}


def apply(name: str | None) -> None:
    """Switches a safeguard off in this process, for good."""
    if name is not None:
        ABLATIONS[name]()
