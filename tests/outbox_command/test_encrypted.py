"""The command on an outbox that is encrypted, with its keys and without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from cached_session import SQLiteOutbox, fernet_cipher
from cached_session.commands.outbox.keys import KEYS, KEYS_FILE
from cached_session.emulator import Emulator
from cached_session.outbox import Address
from tests.outbox_command.support import SECRET, address, do, rows, run, told
from tests.session.support import Elsewhere, texts, users

KEY, OTHER = (Fernet.generate_key().decode() for _ in range(2))

DOUBT = (
    b'{"anchors": [], "from_start": true, "known": [], "sends": [], "sending": false, "now": 0.0}'
)


@pytest.fixture
def at(file: Path, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Address:
    """A paused backlog of two items, encrypted, and where it is."""
    monkeypatch.setenv("OPENAI_BASE_URL", emulator.base_url)
    there = address(emulator, Elsewhere(emulator).conversation())
    contents = SQLiteOutbox(file, cipher=fernet_cipher(KEY)).contents
    items = [contents.put(json.dumps(item).encode()) for item in users(SECRET, "more")]

    def record(log: object) -> None:
        store = log.store  # type: ignore[attr-defined]
        [first, _] = store.accept(there, items, 1.0)
        # A batch that may have been sent, as far as can be told without the key.
        store.seal(there, first, contents.put(DOUBT))
        store.pause(there, "BadRequestError, status 400")

    do(file, record)
    return there


def test_without_the_key(
    at: Address, file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids, counts and sizes are shown, "encrypted" in the place of what was said; it is removed."""
    assert run("list", file) == 0
    [cells] = rows(capsys.readouterr().out)
    assert cells[1:3] == [at.conversation, "2"]
    assert run("show", file, 1, "--content") == 0
    shown = capsys.readouterr().out
    assert "1 of them may have been sent" in shown
    assert shown.count("\nencrypted\n") == 2
    assert shown.count("  encrypted  -  ") == 2
    assert run("export", file, 1) == 1
    told(capsys, str(file), "is encrypted", KEYS, KEYS_FILE)
    assert run("retry", file, 1) == 1
    said = capsys.readouterr()
    assert "0 items have landed, 2 wait." in said.out
    assert all(part in said.err for part in (str(file), "is encrypted", KEYS, KEYS_FILE))
    assert texts(emulator.items(at.conversation)) == []
    [summary] = do(file, lambda log: log.summaries())
    # `retry` has cleared the pause: whoever has the key sends it.
    assert (summary.items, summary.paused) == (2, None)
    assert run("discard", file, 1, "--yes") == 0
    assert do(file, lambda log: log.summaries()) == []


def test_only_what_is_noted_is_encrypted(
    at: Address, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing waits, and what is noted cannot be decrypted any more, `discard` removes that.

    With its key it is left: late copies are still looked for.
    """
    do(file, lambda log: (log.store.landed(at, 1), log.store.withdraw(at)))

    def noted() -> bytes | None:
        return do(file, lambda log: log.mailbox(at).doubt)

    monkeypatch.setenv(KEYS, KEY)
    assert run("discard", file, 1) == 0
    assert "Nothing waits in backlog 1. It is paused" in capsys.readouterr().out
    monkeypatch.setenv(KEYS, OTHER)
    assert run("discard", file, 1) == 1
    told(capsys, "what is noted of it, which cannot be decrypted", "--yes")
    assert noted() is not None
    assert run("discard", file, 1, "--yes") == 0
    assert "Removed what is noted of it" in capsys.readouterr().out
    assert noted() is None


@pytest.mark.parametrize("how", [KEYS, KEYS_FILE])
def test_with_the_key(
    how: str,
    at: Address,
    file: Path,
    tmp_path: Path,
    emulator: Emulator,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the keys in the environment, or in a file that it names, all is done as ever."""
    keys = f"{OTHER}\n{KEY}\n"
    (tmp_path / "keys").write_text(keys)
    monkeypatch.setenv(how, keys if how == KEYS else str(tmp_path / "keys"))
    assert run("show", file, 1, "--content") == 0
    shown = capfd.readouterr().out
    assert SECRET in shown
    assert "1 of them refused" in shown
    assert run("export", file, 1) == 0
    exported = capfd.readouterr().out.splitlines()
    assert [json.loads(line)["content"] for line in exported] == [SECRET, "more"]
    assert run("retry", file, 1) == 0
    assert texts(emulator.items(at.conversation)) == [SECRET, "more"]


def test_relay(
    at: Address,
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`relay` sends with the key; without it it says so, sends nothing, and keeps all."""
    do(file, lambda log: log.store.resume(at))
    assert run("relay", file, "--once") == 3
    said = capsys.readouterr().out
    assert said.count("not adopted") == 1
    assert "is encrypted" in said
    monkeypatch.setenv(KEYS, KEY)
    assert run("relay", file, "--once") == 0
    assert texts(emulator.items(at.conversation)) == [SECRET, "more"]


def test_keys_that_are_none(
    at: Address,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is no key, or cannot be read, is told by its name and place, and not quoted.

    Commands that need no key go on without it.
    """
    monkeypatch.setenv(KEYS, f"{KEY} s3cret")
    for command, status in ((("list",), 0), (("show", 1), 0), (("export", 1), 1)):
        assert run(command[0], file, *command[1:]) == status
        error = capsys.readouterr().err
        assert f"{KEYS}: keys[1] is no Fernet key" in error
        assert "s3cret" not in error
    monkeypatch.delenv(KEYS)
    monkeypatch.setenv(KEYS_FILE, str(tmp_path / "missing"))
    assert run("export", file, 1) == 1
    told(capsys, "missing", KEYS_FILE, "cannot be read")
    empty = tmp_path / "empty"
    empty.touch()
    monkeypatch.setenv(KEYS_FILE, str(empty))
    assert run("relay", file, "--once") == 1
    told(capsys, "empty: keys: at least one is needed")
