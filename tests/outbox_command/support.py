"""What the tests of the command share."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from cached_session import SQLiteOutbox
from cached_session.commands.cli import main
from cached_session.conversation.record import address_of
from cached_session.emulator import Emulator
from cached_session.outbox import Address
from cached_session.outbox.sqlite.log import SQLiteLog
from cached_session.server.connections import account
from tests.session.support import users

KEY = "sk-recorded"
SECRET = "the secret of the cellar"

# Another process that has the backlog of argv[2:] in the file argv[1], until its input ends.
HOLD = """
import asyncio, sys
from cached_session.outbox import Address, SQLiteOutbox
outbox = SQLiteOutbox(sys.argv[1])
print(asyncio.run(outbox.transact(lambda log: log.store.claim(Address(*sys.argv[2:])))), flush=True)
sys.stdin.read()
"""


def do(file: Path, work: Callable[[SQLiteLog], Any]) -> Any:
    """Does something to the outbox in a file, and closes it."""

    async def transact() -> Any:
        outbox = SQLiteOutbox(file)
        try:
            return await outbox.transact(work)
        finally:
            await outbox.let_go()

    return asyncio.run(transact())


def address(emulator: Emulator, conversation: str, key: str = KEY, **options: Any) -> Address:
    """Where a client with this key finds a conversation in an outbox."""
    client = AsyncOpenAI(base_url=emulator.base_url, api_key=key, **options)
    return address_of(account(client), conversation)


def record(file: Path, to: Address, *words: str, at: float | None = None) -> None:
    """Has messages wait in the file, as `add_items` records them."""
    items = [json.dumps(item, separators=(",", ":")).encode() for item in users(*words)]
    do(file, lambda log: log.store.accept(to, items, time.time() if at is None else at))


@contextmanager
def living(file: Path, of: Address) -> Iterator[subprocess.Popen[str]]:
    """A process that has the backlog, alive until the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file), *of],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Claim.")
            yield process
        finally:
            process.kill()


def run(*arguments: object) -> int:
    return main(("outbox", *map(str, arguments)))


def rows(output: str) -> list[list[str]]:
    """The cells of a list, without its head."""
    return [re.split(" {2,}", line.strip()) for line in output.splitlines()][1:]


def shown(file: Path, number: int, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What `show` says of a backlog, without its items."""
    assert run("show", file, number) == 0
    lines = capsys.readouterr().out.splitlines()
    return dict(re.split(" {2,}", line, maxsplit=1) for line in lines if line[0].isalpha())


def apart(*arguments: object, redirected: str = "", limit: int | None = None) -> tuple[int, str]:
    """Runs the command in a process of its own, under a shell.

    Args:
        arguments: The command line behind `outbox`.
        redirected: What the shell does with the standard output.
        limit: How large a file may become, in bytes.

    Returns:
        Its status, and what went to standard error.
    """
    code = "import sys; from cached_session.commands.cli import main; sys.exit(main())"
    if limit is not None:
        code = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, ({limit}, {limit})); {code}"
    words = [sys.executable, "-c", code, "outbox", *map(str, arguments)]
    done = subprocess.run(
        f"{shlex.join(words)} {redirected}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def waiting(file: Path, at: Address) -> list[str]:
    """The texts of what waits."""
    found = do(file, lambda log: log.mailbox(at).rows)
    return [json.loads(row.data)["content"] for row in found]


def told(capsys: pytest.CaptureFixture[str], *parts: str) -> str:
    """What went to standard error: one line, which says all of it, and no traceback."""
    error = capsys.readouterr().err
    assert error.startswith("cached-session outbox: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    return error
