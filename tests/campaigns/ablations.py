"""The safeguards, switched off one at a time: each has to be missed, as a violation of its kind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

from cached_session.conversation import (
    conversation,
    delivery,
    listing,
    operation,
    record,
    turns,
)
from cached_session.core import history, ledger, matching, unsettled
from cached_session.outbox import Address, Claim, log
from cached_session.outbox.sqlite import log as sqlite_log
from cached_session.outbox.sqlite import store as sqlite_store
from cached_session.outbox.sqlite.store import Store
from tests.campaigns.account import Violation
from tests.campaigns.plan import Failure, Plan
from tests.crashes.plan import Round
from tests.simulation import fleet_tables
from tests.simulation.fleet_setting import FleetSetting
from tests.simulation.outbox_setting import OutboxSetting
from tests.simulation.outbox_work import GIVEN_UP
from tests.simulation.world import Setting

Ablation = Callable[[pytest.MonkeyPatch], None]

# What an append is told, and what the copy and the order of those who work are good for


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

    patch.setattr(operation.Order, "write", directly)


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

    patch.setattr(operation.Order, "enter", enter)
    patch.setattr(operation.Order, "leave", leave)
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


# What the outbox records


def doubt_not_restored(patch: pytest.MonkeyPatch) -> None:
    """A process that takes over takes what is sealed for what was never sent."""
    patch.setattr(unsettled.Unsettled, "restore", lambda *args, **kwargs: None)


def seal_without_anchor(patch: pytest.MonkeyPatch) -> None:
    """What stands before a batch is not recorded with it."""
    seal = Store.seal

    def forgetful(self: Store, address: Address, through: int, doubt: bytes | None) -> Any:
        noted = b'{"anchors":[],"from_start":true,"sending":true,"now":0.0}'
        return seal(self, address, through, noted)

    patch.setattr(Store, "seal", forgetful)


def nothing_is_sealed(patch: pytest.MonkeyPatch) -> None:
    """A batch is sent and not recorded as such: what is on its way can be withdrawn."""

    def unsealed(self: Store, address: Address, through: int, doubt: bytes | None) -> Any:
        rows = self.mailbox(address).rows
        return tuple(row for row in rows if row.seq <= through)

    patch.setattr(Store, "seal", unsealed)
    # What has landed is taken out all the same, or it would wait there for ever.
    landed = "DELETE FROM items WHERE conversation = ? AND seq <= ?"
    patch.setattr(sqlite_store, "LANDED", landed)


def landed_not_recorded_before_a_pop(patch: pytest.MonkeyPatch) -> None:
    """A process that takes over sends again what was on the server and was popped."""

    async def note_removal(self: Any, record: Any) -> None:
        """Notes nothing."""

    patch.setattr(conversation.Conversation, "_note_removal", note_removal)


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

    async def early(self: Any, *arguments: Any) -> None:
        task = asyncio.get_running_loop().create_task(accept(self, *arguments))
        begun.add(task)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        task.add_done_callback(begun.discard)

    patch.setattr(record.Record, "accept", early)


def no_settling_before_a_send(patch: pytest.MonkeyPatch) -> None:
    """What is sealed is sent again without asking how much of it has landed."""
    patch.setitem(ledger.TRANSITIONS[ledger.Front.FLYING], ledger.Event.LOST, ledger.Front.NONE)


def reads_of_the_server_alone(patch: pytest.MonkeyPatch) -> None:
    """Whether something waits is looked at before a read gets its turn, and not in it."""
    read = conversation.Conversation.read

    async def decided(
        self: Any, operation: Any, limit: Any, trust: Any, stale: float | None = None
    ) -> Any:
        if self.ledger.queue or self.ledger.local or self.ledger.watch.active:
            return await read(self, operation, limit, trust, stale)
        async with self.order.turn(operation):
            history = await conversation.fresh(self.ledger, None, operation, limit, trust)
            return conversation.copies(history.tail(limit))

    patch.setattr(conversation.Conversation, "read", decided)


def not_sealed(patch: pytest.MonkeyPatch) -> None:
    """It is not recorded which items may have been sent, but what stood before them is."""
    seal = "UPDATE items SET sealed = 0 WHERE conversation = ? AND seq <= ?"
    patch.setattr(sqlite_store, "SEAL", seal)
    rows = f"{sqlite_store.ROWS} WHERE conversation = ? ORDER BY seq LIMIT 20"
    patch.setattr(sqlite_store, "ROWS_SEALED", rows)
    landed = "DELETE FROM items WHERE conversation = ? AND seq <= ?"
    patch.setattr(sqlite_store, "LANDED", landed)


def removals_not_recorded(patch: pytest.MonkeyPatch) -> None:
    """A process that takes over does not know which late copies were being deleted."""
    remove = listing.remove_late_copies

    async def remove_at_once(ledger: Any, record: Any, operation: Any) -> None:
        await remove(ledger, None, operation)

    for module in (listing, delivery):
        patch.setattr(module, "remove_late_copies", remove_at_once)


def reads_not_validated(patch: pytest.MonkeyPatch) -> None:
    """A read takes what is known for what the log says, once it was read."""
    patch.setattr(record.Record, "valid", lambda self, since, now: self._as_of is not None)


# What holds a fleet together


def no_guard(patch: pytest.MonkeyPatch) -> None:
    """Who sends does not look, right before it does, for how long others keep from it."""
    patch.setattr(record.Record, "left", lambda self: math.inf)


def _other_tables(patch: pytest.MonkeyPatch, *changes: tuple[str, str]) -> None:
    text = fleet_tables.statements()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    patch.setattr(fleet_tables, "statements", lambda: text)


def no_fence(patch: pytest.MonkeyPatch) -> None:
    """Claims are not counted: who has lost a conversation goes on with it as if it had not."""
    _other_tables(patch, ("claims = claims + 1", "claims = 1"))


def no_row_lock(patch: pytest.MonkeyPatch) -> None:
    """Two transactions work on a conversation at the same time."""
    row = "number, timeline INTO found_number, written_on"
    _other_tables(
        patch,
        (
            "UPDATE cached_session.conversations SET changes = changes + more",
            f"SELECT {row} FROM cached_session.conversations",
        ),
        (f"    RETURNING {row};", "    ;"),
        # Nothing is counted by that: each read asks for all, so that it is the lock that is missed.
        ("c.changes", "random()"),
    )


def no_commit_status(patch: pytest.MonkeyPatch) -> None:
    """A call whose answer was lost is taken for one that was not done."""
    _other_tables(
        patch,
        ("RETURN done IS DISTINCT FROM number_of;", "RETURN true;"),
        ("call < number_of", "call <= number_of"),
    )


DOUBLED = "on the server more often than appended"
LOST = "appended, never removed, not on the server"
UNTRUE = "a read .* shows what the server never held"
HALF = "a cancelled append is half applied"
NOT_IDEAL = "at the end: lost|a read shows|a read "
POPPED = "a pop removed"
UNRECORDED = "an append returned and was recorded as"
UNSEEN = "does not show what had been appended"
UNEXPLAINED = r"[1-9]\d* doubled|: a read of "

Draw = Callable[[int], Plan]

ABLATIONS: Mapping[Ablation, Mapping[Draw, str]] = {
    no_reconciliation: {Setting.draw: DOUBLED},
    no_anchor: {Setting.draw: f"{DOUBLED}|{LOST}|{UNTRUE}"},
    no_verified_mark: {Setting.draw: UNTRUE},
    no_late_commit_watch: {Setting.draw: DOUBLED, Round.losing_answers: UNEXPLAINED},
    no_shielding: {Setting.draw: HALF},
    no_ordering: {Setting.draw: f"{DOUBLED}|{UNTRUE}"},
    equal_texts_alone: {Setting.rewriting: DOUBLED},
    doubt_not_restored: {OutboxSetting.draw: NOT_IDEAL, Round.losing_answers: UNEXPLAINED},
    seal_without_anchor: {OutboxSetting.losing_answers: NOT_IDEAL},
    nothing_is_sealed: {OutboxSetting.draw: f"{NOT_IDEAL}|{POPPED}"},
    landed_not_recorded_before_a_pop: {OutboxSetting.draw: POPPED},
    claim_always_granted: {OutboxSetting.draw: NOT_IDEAL},
    taking_over_unnoticed: {OutboxSetting.draw: NOT_IDEAL},
    claims_not_counted: {OutboxSetting.draw: NOT_IDEAL},
    mirror_before_the_record: {OutboxSetting.draw: UNRECORDED},
    no_settling_before_a_send: {OutboxSetting.draw: NOT_IDEAL},
    reads_of_the_server_alone: {OutboxSetting.crowded: "a read "},
    reads_not_validated: {OutboxSetting.draw: UNSEEN},
    no_guard: {FleetSetting.asleep_before_a_send: NOT_IDEAL},
    no_fence: {FleetSetting.asleep: NOT_IDEAL},
    no_row_lock: {FleetSetting.draw: NOT_IDEAL},
    no_commit_status: {
        FleetSetting.unanswered: r"recorded twice|an append of one item: \['(.*)', '\1'\]"
    },
    not_sealed: {Round.losing_answers: UNEXPLAINED},
    removals_not_recorded: {Round.amid_removals: UNEXPLAINED},
}
"""The safeguards, in which plans each is missed, and as what the account notices that."""

BESIDE: Mapping[Ablation, str] = {
    # They meet in the ledger, which stops them, or the account sees what they did first.
    no_ordering: "ImpossibleEvent",
    # Most runs stop before anything goes wrong: a human is asked, which is a violation, too.
    seal_without_anchor: GIVEN_UP,
    # What a process prints shows nothing of the account: without its safeguard it may as well
    # warn that a batch can't be told from another's.
    doubt_not_restored: "RuntimeError: a process printed",
    no_late_commit_watch: "RuntimeError: a process printed",
    not_sealed: "RuntimeError: a process printed",
    removals_not_recorded: "RuntimeError: a process printed",
}
"""What a run may fail of before the one that is looked for."""

BEGIN: Mapping[Ablation, int] = {landed_not_recorded_before_a_pop: 550}
"""The first seed of a search, where none of hundreds before it is one; 0 for all others."""

BY_NAME = {ablation.__name__: ablation for ablation in ABLATIONS}


def in_plans(*worlds: str) -> Sequence[Any]:
    """The parameters of a test that looks whether safeguards are missed in some worlds."""
    return [
        pytest.param(ablation, draw, violation, id=ablation.__name__)
        for ablation, plans in ABLATIONS.items()
        for draw, violation in plans.items()
        if draw(0).world in worlds
    ]


def missed(ablation: Ablation, violation: str, runs: Iterable[Callable[[], object]]) -> None:
    """One of these runs ends with a violation of this kind, and none before it otherwise."""
    beside = BESIDE.get(ablation)
    for run in runs:
        try:
            run()
        except Failure as failure:
            cause = failure.__cause__
            if isinstance(cause, Violation) and re.search(violation, str(cause)):
                return
            # An error of the product, or of the ablation itself, shows nothing of the account.
            if beside is None or not re.search(beside, f"{type(cause).__name__}: {cause}"):
                raise
    pytest.fail("no promise was broken")
