"""`list` and `show`: what waits, and nothing of what it says unless that is asked for."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import pytest

from cached_session.emulator import Emulator
from cached_session.outbox import LOCAL, StoredItem, StoredWindow
from tests.outbox_command.support import (
    KEY,
    SECRET,
    address,
    do,
    living,
    record,
    rows,
    run,
    shown,
)
from tests.session.support import users


def test_list_has_a_line_for_each_backlog(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each backlog has one line, with what waits, since when, and why it is not sent; the idle
    ones have one if they are asked for."""
    one, local, other = (address(emulator, name) for name in ("conv_1", f"{LOCAL}2", "conv_3"))
    record(file, one, SECRET, SECRET, at=time.time() - 7300)
    record(file, local, SECRET)
    window = StoredWindow((StoredItem("msg_1", SECRET.encode()),), True, 0)
    do(file, lambda log: log.store.replace_window(other, window))
    do(file, lambda log: log.store.pause(one, "BadRequestError, status 400"))
    assert run("list", file) == 0
    [*few, closing] = rows(capsys.readouterr().out)
    assert ([row[0] for row in few], closing) == (
        ["1", "2"],
        ["--all lists 1 idle conversation, too."],
    )
    assert run("list", file, "--all") == 0
    output = capsys.readouterr().out
    size = len(json.dumps(users(SECRET)[0], separators=(",", ":")))
    assert rows(output) == [
        ["1", "conv_1", "2", str(2 * size), "2 h", "paused: BadRequestError, status 400"],
        ["2", f"{LOCAL}2 (not created yet)", "1", str(size), "0 s", "waiting"],
        ["3", "conv_3", "0", "0", "-", "nothing waits"],
    ]
    assert SECRET not in output
    assert KEY not in output
    assert one.credentials not in output


@pytest.mark.processes
def test_list_shows_who_sends(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backlog that a living process sends says so, and no longer once that process is dead."""
    at = address(emulator, "conv_1")
    record(file, at, "a")
    with living(file, at):
        assert run("list", file) == 0
        assert rows(capsys.readouterr().out)[0][5] == "being sent by a living process"
    assert run("list", file) == 0
    assert rows(capsys.readouterr().out)[0][5] == "waiting"


def test_list_of_an_empty_outbox(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An outbox that holds nothing is no error."""
    do(file, lambda log: None)
    assert run("list", file) == 0
    assert capsys.readouterr().out == "Nothing waits.\n"
    assert run("list", file, "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list_for_programs(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json` prints one array, with a backlog's facts, and no content and no key."""
    at = address(emulator, "conv_1")
    record(file, at, SECRET, at=86400.0)
    assert run("list", file, "--json") == 0
    output = capsys.readouterr().out
    [found] = json.loads(output)
    assert (found["number"], found["conversation"], found["created"]) == (1, "conv_1", True)
    assert (found["items"], found["oldest"], found["paused"]) == (1, 86400.0, None)
    assert SECRET not in output
    assert at.credentials not in output


def test_list_on_a_narrow_terminal(
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a terminal of 80 columns no line is longer: ids and reasons keep both of their ends."""
    at = address(emulator, "conv_" + "0123456789abcdef" * 3)
    record(file, at, SECRET)
    do(file, lambda log: log.store.pause(at, "BadRequestError, status 400, code invalid_value"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert run("list", file) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert re.search(r"conv_01\w*\.\.\.\w*ef ", lines[1])


def test_show_has_a_line_for_each_item(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """One backlog in full: its address without the key's digest, and one line an item."""
    at = address(emulator, "conv_1", organization="org-1")
    record(file, at, SECRET, at=86400.0)
    output = {"type": "function_call_output", "call_id": "1", "output": SECRET}
    odd = {"type": SECRET, "role": ["x"]}
    more = [json.dumps(item).encode() for item in (output, odd)]
    do(file, lambda log: log.store.accept(at, more, 86401.5))
    do(file, lambda log: log.store.seal(at, 1, None))
    assert run("show", file, 1) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    facts = dict(re.split(" {2,}", line, maxsplit=1) for line in lines[:11])
    assert facts["conversation"] == "conv_1"
    assert facts["server"] == at.base_url
    assert facts["organization"] == "org-1"
    assert facts["project"] == "-"
    assert facts["items"] == "3, 1 of them may have been sent"
    size = len(json.dumps(users(SECRET)[0], separators=(",", ":")))
    first, second = "1970-01-02 00:00:00 UTC", "1970-01-02 00:00:01 UTC"
    sealed, sizes = "sealed, may have been sent", [len(item) for item in more]
    assert [re.split(" {2,}", line) for line in lines[11:]] == [
        ["1", "message", "user", f"{size} bytes", first, sealed],
        ["2", "function_call_output", "-", f"{sizes[0]} bytes", second, "not sent"],
        ["3", "-", "-", f"{sizes[1]} bytes", second, "not sent"],
    ]
    assert SECRET not in printed
    assert at.credentials not in printed


def test_show_has_content_when_asked(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --content each item is there as JSON, and cannot control the terminal."""
    words = ["\x1b[2Jgrüße", "\x9b\u202e\U000e0001"]
    items = [json.dumps(item, ensure_ascii=False).encode() for item in users(*words)]
    do(file, lambda log: log.store.accept(address(emulator, "conv_1"), items, 1.0))
    assert run("show", file, 1, "--content") == 0
    output = capsys.readouterr().out
    assert "grüße" in output
    assert all(character.isprintable() for line in output.splitlines() for character in line)
    shown = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert shown == users(*words)


def test_show_says_with_which_key(
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Backlogs of one conversation under several keys can be told apart, and the present one's."""
    for key in (KEY, "sk-other"):
        record(file, address(emulator, "conv_1", key, organization="org-1"), "1")
    record(file, address(emulator, "conv_1")._replace(credentials=""), "1")
    keys = [shown(file, number, capsys)["key"] for number in (1, 2, 3)]
    first, second = (
        address(emulator, "conv_1", key, organization="org-1").credentials
        for key in (KEY, "sk-other")
    )
    assert keys == [
        f"digest {first[:8]}..., that of the key in OPENAI_API_KEY",
        f"digest {second[:8]}..., not that of the key in OPENAI_API_KEY",
        "not fixed",
    ]
    monkeypatch.delenv("OPENAI_API_KEY")
    assert shown(file, 1, capsys)["key"] == f"digest {first[:8]}..."


def test_show_leaves_credentials_out_of_the_base_url(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a base URL holds of a user, a password or a key in its query is not shown."""
    base_url = "http://user:PASS@127.0.0.1:9/v1?api_key=PASS#PASS"
    record(file, address(emulator, "conv_1")._replace(base_url=base_url), "1")
    assert shown(file, 1, capsys)["server"] == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("reason", "doubt", "became"),
    [
        ("BadRequestError, status 400, code x", b'{"anchors":[]}', "refused"),
        ("BadRequestError, status 400", None, "refused"),
        (
            "AuthenticationError, status 401",
            b'{"sends":[[["{}"],"until 60.0",60.0]]}',
            "may have been sent",
        ),
        ("APIStatusError, status 408", None, "may have been sent"),
        ("InternalServerError, status 500", None, "may have been sent"),
        ("AppendOutcomeUnknown", None, "may have been sent"),
        (None, None, "may have been sent"),
    ],
)
def test_show_says_what_became_of_a_batch(
    reason: str | None,
    doubt: bytes | None,
    became: str,
    file: Path,
    emulator: Emulator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A batch that the server refused may not have been sent; one in doubt may."""
    at = address(emulator, "conv_1")
    record(file, at, "1", "2")
    do(file, lambda log: log.store.seal(at, 1, doubt))
    if reason is not None:
        do(file, lambda log: log.store.pause(at, reason))
    assert run("show", file, 1) == 0
    output = capsys.readouterr().out
    assert f"2, 1 of them {became}\n" in output
    assert f"  sealed, {became}\n" in output


def test_item_of_the_future_was_accepted_just_now(
    file: Path, emulator: Emulator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the clock was set back since an item was accepted, its age is none, and no error."""
    moment = time.time() + 400 * 86400
    record(file, address(emulator, "conv_1"), "1", at=moment)
    assert run("list", file) == 0
    assert rows(capsys.readouterr().out)[0][4] == "0 s"
    date = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
    assert shown(file, 1, capsys)["oldest"] == f"{date}, 0 s"
