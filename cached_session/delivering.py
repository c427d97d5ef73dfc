"""Putting the next batch of a backlog on the server, exactly once. In the conversation's turn."""

from __future__ import annotations

import contextlib

from cached_session.addresses import speaks_for
from cached_session.appending import Append
from cached_session.core.outcomes import Applied
from cached_session.core.unsettled import ANCHORS, Untold
from cached_session.core.wording import counted, rewritten_or_not
from cached_session.errors import AppendOutcomeUnknown, OutboxError, TurnLost
from cached_session.events import Reconciled
from cached_session.journal import Elsewhere, Journal
from cached_session.operation import Operation
from cached_session.servers import PAGE
from cached_session.window import SLACK


async def deliver(journal: Journal, operation: Operation) -> None:
    """Sends one batch, once, after what is in doubt was settled.

    Raises:
        Elsewhere: Another process sends this backlog.
        Changed: Another process did.
        OutboxError: The client speaks for another account by now.
        AppendOutcomeUnknown: What became of the batch is still in doubt; or it
            cannot be found out any more, and then nothing is undecided.
        Exception: As from `Append.run`.
    """
    window = journal.replica.window
    once = operation.without_retries()
    _check_account(journal, once)
    if journal.local:
        # Or two processes that share the name would make a conversation each.
        if not await journal.alone(once):
            raise Elsewhere
        if journal.local:
            await _create(journal, once)
    open_questions = journal.batch or window.history is None or window.unsettled.active
    # Those are for the one who sends, and nobody else.
    if open_questions and not await journal.alone(once):
        raise Elsewhere
    await settle(journal, once)
    if journal.paused is not None:
        # Whoever had the turn before has found out that nothing will tell.
        return
    history = window.history
    too_few = history is not None and len(history) == 1 and not history.complete
    if history is None or too_few or window.unsettled.crowded:
        # In the same one request more than one item that the batch stands behind:
        # other writers may remove the newest ones before an answer is looked for,
        # and a process may have ended before it could note that it did.
        await window.relist(once, ANCHORS, anew=too_few)
        await window.remove_late_copies(once)
    if not journal.waiting:
        return
    batch = await journal.seal()
    _check_account(journal, once)
    if batch:
        # While an earlier send of anything may be alive, it may be one of these.
        resent = window.unsettled.active
        try:
            await Append(window, once, batch, journal.landed, resent=resent).run()
        except AppendOutcomeUnknown as error:
            if not window.unsettled.undecided:
                await _give_up(journal, error)
            raise
        except TurnLost:
            raise
        except Exception:
            if not window.unsettled.undecided:
                # It was refused, or never had a connection. Whoever takes over
                # is to know, and not to take what others append meanwhile for
                # this batch, rewritten.
                await journal.record()
            raise


def _check_account(journal: Journal, operation: Operation) -> None:
    """Refuses to send what was accepted under another account than the client speaks for now.

    Raises:
        OutboxError: So it is. Nothing was sent.
    """
    if not speaks_for(operation.remote.account, journal.outbox, journal.address):
        raise OutboxError(
            f"{operation.conversation_id}: {counted(len(journal.waiting))} accepted under "
            "the client's former API key, organization or project are not known to be on the "
            "server. They are kept, and not sent under the new one. Use the conversation with the "
            "former one, or give the outbox an account= if both are one account's",
            conversation_id=operation.conversation_id,
        )


async def _create(journal: Journal, operation: Operation) -> None:
    backlog = journal.replica.backlog
    elsewhere = None if backlog is None else backlog.users.made_elsewhere
    if elsewhere is not None:
        await journal.created(elsewhere, operation, empty=False)
        return
    outcome = await operation.run(lambda seconds: operation.remote.create(timeout=seconds))
    if not isinstance(outcome, Applied):
        raise outcome.error
    made = agreed = outcome.value
    if backlog is not None:
        agreed = await backlog.users.agree(made, operation.deadline)
    await journal.created(agreed, operation, empty=agreed == made)


async def settle(journal: Journal, operation: Operation) -> None:
    """Finds out how much of a batch in doubt has landed.

    Raises:
        AppendOutcomeUnknown: The server shows nothing that could tell.
    """
    window = journal.replica.window
    if not journal.batch or not window.unsettled.undecided:
        return
    sent = len(journal.batch)
    # The listing that looks for it carries it back. What is sealed waits in front.
    operation.allow(sum(len(item.data) for item in journal.waiting.items[:sent]))
    landed = await window.relist(operation, 1)
    if isinstance(landed, Untold):
        window.forget()
        why = (
            rewritten_or_not(len(landed.item_ids))
            if landed.item_ids
            else "other writers removed what stood before it"
        )
        error = AppendOutcomeUnknown(
            f"append to {operation.conversation_id}: whether a recorded batch of {counted(sent)} "
            f"is on the server could not be found out: {why}",
            conversation_id=operation.conversation_id,
            total=sent,
            item_ids=landed.item_ids,
        )
        await _give_up(journal, error)
        raise error
    journal.landed(landed)
    operation.meter.reconciliations += 1
    operation.meter.tell(Reconciled(operation.conversation_id, landed, sent))
    # Before the rest is sent: what is sealed next stands behind this.
    await journal.record()


async def _give_up(journal: Journal, error: AppendOutcomeUnknown) -> None:
    """Pauses it: no other listing will tell. In the turn, before anybody else reads or sends."""
    journal.show_nothing()
    await journal.pause(error.reason, error)


async def look_back(journal: Journal, operation: Operation, *, pages: int) -> bool:
    """Has a listing show what only the answers to our own appends have shown.

    The next process looks back to the last item that a listing has shown, as
    other writers' items may stand behind that. This saves it from looking far.
    It is done while nothing waits, if it takes no more than so many pages.
    Nothing depends on it: a failure is nobody's.

    Returns:
        Whether it was done.
    """
    if not behind(journal, operation, pages):
        return False
    # Of any kind: a key provider may raise whatever it likes.
    with contextlib.suppress(Exception):
        await journal.replica.window.relist(operation.without_retries(), None)
    return True


def behind(journal: Journal, operation: Operation, pages: int) -> bool:
    """Whether there is something to look back for, and so many pages are enough."""
    window = journal.replica.window
    history = window.history
    if history is None or journal.local or journal.waiting or window.unsettled.active:
        return False
    if not speaks_for(operation.remote.account, journal.outbox, journal.address):
        return False
    unverified = len(history) - history.verified
    return journal.keeps_windows and PAGE - SLACK <= unverified < pages * PAGE
