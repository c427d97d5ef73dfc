"""The safeguards of the outbox, switched off one at a time: its campaign must notice each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cached_session.conversation import conversation, record
from cached_session.core import unsettled
from cached_session.core.items import Outgoing
from cached_session.core.ledger import TRANSITIONS, Event, Front
from cached_session.outbox import Address, Claim, log, sqlite_log, statements
from cached_session.outbox.store import Store
from tests.simulation.ablations import Ablation


def doubt_not_restored(patch: pytest.MonkeyPatch) -> None:
    """A process that takes over takes what is sealed for what was never sent."""
    patch.setattr(unsettled.Unsettled, "restore", lambda *args, **kwargs: None)


def seal_without_anchor(patch: pytest.MonkeyPatch) -> None:
    """What stands before a batch is not recorded with it."""
    seal = Store.seal

    def forgetful(self: Store, address: Address, through: int, doubt: bytes | None) -> Any:
        return seal(self, address, through, b'{"anchors":[],"from_start":true}')

    patch.setattr(Store, "seal", forgetful)


def nothing_is_sealed(patch: pytest.MonkeyPatch) -> None:
    """A batch is sent and not recorded as such: what is on its way can be withdrawn."""

    def unsealed(self: Store, address: Address, through: int, doubt: bytes | None) -> Any:
        rows = self.mailbox(address).rows
        return tuple(row for row in rows if row.seq <= through)

    patch.setattr(Store, "seal", unsealed)
    # What has landed is taken out all the same, or it would wait there for ever.
    landed = "DELETE FROM items WHERE conversation = ? AND seq <= ?"
    patch.setattr(statements, "LANDED", landed)


def landed_not_recorded_before_a_pop(patch: pytest.MonkeyPatch) -> None:
    """A process that takes over sends again what was on the server and was popped."""

    async def may_remove(self: Any, backlog: Any, operation: Any) -> bool:
        await backlog.record.alone(operation)
        return not self.ledger.queue

    patch.setattr(conversation.Conversation, "_may_remove", may_remove)


def claim_always_granted(patch: pytest.MonkeyPatch) -> None:
    """Two living processes send the same backlog."""
    patch.setattr(Store, "claim", lambda self, address: Claim.KEPT)
    patch.setattr(Store, "owns", lambda self, address: True)
    patch.setattr(Store, "elsewhere", lambda self, address: False)


def taking_over_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """Who claims a backlog does not look whether somebody else had it meanwhile."""

    class Unmarked(log.Epoch):
        def __eq__(self, other: object) -> bool:
            return isinstance(other, log.Epoch) and self.opened == other.opened

        def __ne__(self, other: object) -> bool:
            return not self == other

        __hash__ = log.Epoch.__hash__

    patch.setattr(sqlite_log, "Epoch", Unmarked)


def claims_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Whoever read a backlog while it was nobody's takes it for untouched ever after."""
    mark = Store.mark
    patch.setattr(Store, "mark", lambda self, address: mark(self, address)._replace(claims=0))


def mirror_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """An append returns before it is recorded."""
    accept, begun = record.Record.accept, set[Any]()

    async def early(self: Any, items: Sequence[Outgoing]) -> None:
        task = asyncio.get_running_loop().create_task(accept(self, items))
        begun.add(task)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        task.add_done_callback(begun.discard)

    patch.setattr(record.Record, "accept", early)


def no_settling_before_a_send(patch: pytest.MonkeyPatch) -> None:
    """What is sealed is sent again without asking how much of it has landed."""
    patch.setitem(TRANSITIONS[Front.FLYING], Event.LOST, Front.NONE)


def reads_of_the_server_alone(patch: pytest.MonkeyPatch) -> None:
    """Whether something waits is looked at before a read gets its turn, and not in it."""
    read = conversation.Conversation.read

    async def decided(self: Any, operation: Any, limit: Any, trust: Any) -> Any:
        if self.ledger.queue or self.ledger.local or self.ledger.watch.active:
            return await read(self, operation, limit, trust)
        async with self.order.turn(operation):
            history = await conversation.fresh(self.ledger, None, operation, limit, trust)
            return conversation.copies(history.tail(limit))

    patch.setattr(conversation.Conversation, "read", decided)


LOST_OR_DOUBLED = "at the end: lost"
UNTRUE = "a read shows|a read "
POPPED = "a pop removed"
UNRECORDED = "an append returned and was recorded as"

OUTBOX_ABLATIONS: dict[Ablation, str] = {
    doubt_not_restored: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    seal_without_anchor: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    nothing_is_sealed: f"{LOST_OR_DOUBLED}|{UNTRUE}|{POPPED}",
    landed_not_recorded_before_a_pop: POPPED,
    claim_always_granted: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    taking_over_unnoticed: UNTRUE,
    claims_not_counted: UNTRUE,
    mirror_before_the_record: UNRECORDED,
    no_settling_before_a_send: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    reads_of_the_server_alone: UNTRUE,
}
"""The safeguards, and as what the account notices that one is missing."""
