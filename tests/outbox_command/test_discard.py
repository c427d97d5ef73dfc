"""`discard`: what waits is removed, if nobody sends it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cached_session import CachedSession, OutboxPaused, RetryPolicy, SQLiteOutbox
from cached_session.emulator import Emulator, FaultKind, Faults
from cached_session.session.cache import ConversationCache
from tests.outbox_command.support import KEY, address, do, living, record, run, told, waiting
from tests.session.support import new_client, texts, users


def test_discard_removes_what_it_said(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing goes without --yes; with it the items and the pause go, and no other backlog."""
    at, other = address(emulator, "conv_1"), address(emulator, "conv_2")
    record(file, at, "1", "2")
    record(file, other, "3")
    do(file, lambda log: log.store.seal(at, 1, b"{}"))
    do(file, lambda log: log.store.pause(at, "reason"))
    assert run("discard", file, 1) == 1
    told(capsys, "would remove 2 items", "conv_1", "1 of them may be on the server", "--yes")
    assert waiting(file, at) == ["1", "2"]
    assert run("discard", file, 1, "--yes") == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("Removing 2 items")
    assert output[1] == "Removed 2 items."
    mailbox = do(file, lambda log: log.mailbox(at))
    assert (mailbox.rows, mailbox.doubt, mailbox.paused) == ((), None, None)
    assert waiting(file, other) == ["3"]


def test_discard_of_a_refused_batch_is_no_cause_for_alarm(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server refused is not said to be there; what nobody can find out about is."""
    at = address(emulator, "conv_1")
    record(file, at, "1")
    do(file, lambda log: log.store.seal(at, 1, b"{}"))
    do(file, lambda log: log.store.pause(at, "BadRequestError, status 400"))
    assert run("discard", file, 1) == 1
    error = capsys.readouterr().err
    assert "would remove 1 item, " in error
    assert "that waits for conv_1. Nothing" in error
    do(file, lambda log: log.store.pause(at, "AppendOutcomeUnknown"))
    assert run("discard", file, 1) == 1
    told(capsys, "1 of them may be on the server already")
    assert run("discard", file, 1, "--yes") == 0
    assert "\nRemoved 1 item.\n" in capsys.readouterr().out


def test_discard_of_nothing(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nothing waits there is nothing to agree to; --yes is for the pause then."""
    at = address(emulator, "conv_1")
    do(file, lambda log: log.store.pause(at, "reason"))
    assert run("discard", file, 1) == 0
    output = capsys.readouterr().out
    assert output == "Nothing waits in backlog 1. It is paused; --yes clears the pause.\n"
    assert do(file, lambda log: log.mailbox(at)).paused == "reason"
    assert run("discard", file, 1, "--yes") == 0
    assert capsys.readouterr().out == "Nothing waits in backlog 1. The pause is cleared.\n"
    assert do(file, lambda log: log.mailbox(at)).paused is None


@pytest.mark.processes
def test_discard_refuses_while_a_process_sends(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a living process sends is not taken from under it, and the command says what to do."""
    at = address(emulator, "conv_1")
    record(file, at, "1")
    with living(file, at):
        for yes in ((), ("--yes",)):
            assert run("discard", file, 1, *yes) == 1
            told(capsys, "nothing was removed", "clear_session()")
    assert waiting(file, at) == ["1"]


def test_discard_is_seen_by_a_session_that_was_paused(file: Path, emulator: Emulator) -> None:
    """A session of another process whose backlog was discarded goes on with its next append."""

    async def scenario() -> None:
        client = new_client(emulator, KEY)
        session = CachedSession(
            openai_client=client,
            outbox=SQLiteOutbox(file),
            cache=ConversationCache(),
            retry=RetryPolicy(deadline=10),
        )
        await session.get_items()
        emulator.faults = Faults(1, {FaultKind.RATE_LIMITED_QUOTA: 1.0})
        await session.add_items(users("refused"))
        with pytest.raises(OutboxPaused):
            await session.flush()
        emulator.faults = None
        assert await asyncio.to_thread(run, "discard", file, 1, "--yes") == 0
        await session.add_items(users("next"))
        await session.aclose(timeout=20)
        assert texts(emulator.items(session.session_id)) == ["next"]
        await client.close()

    asyncio.run(scenario())
