"""The safeguards of the outbox, switched off one at a time: its campaign must notice each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from cached_session import backlog, delivering, journal, popping
from cached_session.core import unsettled
from cached_session.core.items import Outgoing
from cached_session.outbox import Address, Claim, Store, statements
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

    async def put_down(self: Any, *, in_doubt: bool) -> None:
        if self._journal.waiting:
            raise popping._Waits

    patch.setattr(popping.Popping, "_put_down", put_down)


def claim_always_granted(patch: pytest.MonkeyPatch) -> None:
    """Two living processes send the same backlog."""
    patch.setattr(Store, "claim", lambda self, address: Claim.KEPT)
    patch.setattr(Store, "owns", lambda self, address: True)
    patch.setattr(Store, "elsewhere", lambda self, address: False)


def taking_over_unnoticed(patch: pytest.MonkeyPatch) -> None:
    """Who claims a backlog does not look whether somebody else had it meanwhile."""
    claim = Store.claim

    def claimed(self: Store, address: Address) -> Claim | None:
        return None if claim(self, address) is None else Claim.KEPT

    patch.setattr(Store, "claim", claimed)


def claims_not_counted(patch: pytest.MonkeyPatch) -> None:
    """Whoever read a backlog while it was nobody's takes it for untouched ever after."""
    mark = Store.mark
    patch.setattr(Store, "mark", lambda self, address: mark(self, address)._replace(claims=0))


def mirror_before_the_record(patch: pytest.MonkeyPatch) -> None:
    """An append returns before it is recorded."""
    accept = journal.Journal.accept

    async def early(self: Any, items: Sequence[Outgoing]) -> None:
        task = asyncio.get_running_loop().create_task(accept(self, items))
        self.replica._writes.add(task)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    patch.setattr(journal.Journal, "accept", early)


def no_settling_before_a_read(patch: pytest.MonkeyPatch) -> None:
    """A read does not find out first how much of a batch in doubt has landed."""

    async def settle(journal: Any, operation: Any) -> None:
        return None

    patch.setattr(backlog, "settle", settle)


def no_settling_before_a_send(patch: pytest.MonkeyPatch) -> None:
    """What is sealed is sent again without asking how much of it has landed."""

    async def settle(journal: Any, operation: Any) -> None:
        return None

    patch.setattr(delivering, "settle", settle)


def reads_of_the_server_alone(patch: pytest.MonkeyPatch) -> None:
    """Whether something waits is looked at before a read gets its turn, and not in it."""
    read = backlog.Backlog.read

    async def decided(self: Any, *args: Any, **options: Any) -> Any:
        if self.waits:
            return await read(self, *args, **options)
        return await self.replica.read(*args, **options)

    patch.setattr(backlog.Backlog, "read", decided)


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
    no_settling_before_a_read: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    no_settling_before_a_send: f"{LOST_OR_DOUBLED}|{UNTRUE}",
    reads_of_the_server_alone: UNTRUE,
}
"""The safeguards, and as what the account notices that one is missing."""
