"""`move`, and `retry --account`: whose a backlog is."""

from __future__ import annotations

from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from cached_session.outbox import LOCAL, Address
from tests.outbox_command.support import (
    KEY,
    address,
    do,
    living,
    record,
    run,
    shown,
    told,
    waiting,
)
from tests.session.support import Elsewhere, texts


def named(emulator: Emulator, conversation: str, account: str = "prod") -> Address:
    return address(emulator, conversation)._replace(credentials=f"account:{account}")


def test_move_to_a_named_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backlog goes to an account by its name, without a key, and nothing is sent."""
    record(file, address(emulator, "conv_1"), "a", "b")
    assert run("move", file, 1, "--account", "prod") == 0
    output = capsys.readouterr().out
    assert output == "2 items for conv_1 wait in backlog 1 now, which is that of account 'prod'.\n"
    assert waiting(file, named(emulator, "conv_1")) == ["a", "b"]
    assert shown(file, 1, capsys)["key"] == "any of the account 'prod'"
    assert emulator.requests == []


def test_move_to_the_present_key(
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a name a backlog goes to the account of the key in OPENAI_API_KEY."""
    at = named(emulator, f"{LOCAL}1")
    record(file, at, "a")
    do(file, lambda log: log.store.pause(at, "reason"))
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run("move", file, 1) == 1
    told(capsys, "needs an API key")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert run("move", file, 1) == 0
    output = capsys.readouterr().out
    assert "1 item for local-1 (not created yet) waits in backlog 1 now" in output
    assert "It is paused: reason. `retry` clears the pause." in output
    assert KEY not in output
    assert waiting(file, address(emulator, f"{LOCAL}1")) == ["a"]


def test_move_is_refused(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is taken from a living process, nor mixed with what waits there, nor made up."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    with living(file, at):
        assert run("move", file, 1, "--account", "prod") == 1
        told(capsys, "a living process sends it")
    record(file, named(emulator, "conv_1"), "b")
    assert run("move", file, 1, "--account", "prod") == 1
    told(capsys, "with number 2", "Send or discard that one first")
    assert waiting(file, at) == ["a"]
    assert run("move", file, 3, "--account", "prod") == 1
    told(capsys, "there is no backlog 3")
    with pytest.raises(SystemExit):
        run("move", file, 1, "--account", "")
    assert "account must be a printable text" in capsys.readouterr().err


def test_moving_nothing(file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing waits, that is said."""
    at = address(emulator, "conv_1")
    do(file, lambda log: log.store.pause(at, "reason"))
    assert run("move", file, 1, "--account", "prod") == 0
    assert capsys.readouterr().out == "Nothing waits in backlog 1.\n"


def test_retry_of_a_named_account(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a named account accepted is sent if the caller says that the key is one of its keys."""
    conversation = Elsewhere(emulator).conversation()
    record(file, named(emulator, conversation), "a")
    for options in ([], ["--account", "test"]):
        assert run("retry", file, 1, *options) == 1
        told(capsys, "recorded for the account 'prod'", "--account prod", "Nothing was changed")
    assert emulator.items(conversation) == []
    assert run("retry", file, 1, "--account", "prod") == 0
    assert "1 item has landed" in capsys.readouterr().out
    assert texts(emulator.items(conversation)) == ["a"]
