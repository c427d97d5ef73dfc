"""Addresses, items and other processes for the tests of the outboxes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cached_session.errors import OutboxError
from cached_session.outbox import LOCAL, Address, Log, StoredItem
from cached_session.outbox.log import Epoch
from cached_session.outbox.postgres.log import PostgresLog
from cached_session.outbox.sqlite.log import SQLiteLog

ADDRESS = Address("https://api.example/v1/", "org", "", "digest", "conv_1")
OTHER = ADDRESS._replace(conversation="conv_2")
OFFLINE = ADDRESS._replace(conversation=f"{LOCAL}1")

# What a test's other process begins with. `conversation(name)` is an address.
PREAMBLE = """
import asyncio, os, sys
from cached_session.errors import OutboxError
from cached_session.outbox import *
path = sys.argv[1]
address = Address("https://api.example/v1/", "org", "", "digest", "conv_1")
def accept(*items):
    def work(log):
        seen = log.open(address, None, 0, claim=False, first=True)
        return log.accept(address, seen.epoch, 0, items, 1.0)
    return work
"""


def opened(log: Log) -> Epoch:
    """As of when a log was opened in which nobody has had a conversation."""
    if isinstance(log, PostgresLog):
        return Epoch(log.token, (0, 0))
    return Epoch(log.store.token if isinstance(log, SQLiteLog) else "", (0, 0))


def accept(
    *items: bytes, at: float = 1.0, address: Address = ADDRESS
) -> Callable[[Log], tuple[int, ...]]:
    """A work that records items, and returns their places."""

    def work(log: Log) -> tuple[int, ...]:
        accepted = log.accept(address, opened(log), 0, items, at)
        return tuple(row.seq for row in accepted.rows)

    return work


def waiting(log: Log) -> list[bytes]:
    """A work that returns the items that wait, as recorded."""
    return [row.data for row in log.mailbox(ADDRESS).rows]


def listed(*names: str, size: int = 10) -> list[StoredItem]:
    """Items of a window, each of `size` bytes with its id."""
    return [StoredItem(name, b"." * (size - len(name))) for name in names]


def says(error: OutboxError, path: Path, *parts: str) -> None:
    """Checks that an error names the path, what is so, and what to do, in sentences."""
    for part in (str(path), *parts):
        assert part in str(error)
    assert str(error).endswith(".")


def run(script: str, *arguments: object, options: tuple[str, ...] = ()) -> str:
    """Runs a script in another process, and returns what it printed. It must succeed quietly."""
    done = subprocess.run(
        [sys.executable, *options, "-c", PREAMBLE + script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr, done.stderr
    assert done.returncode == 0
    return done.stdout.strip()


@contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs a script, with pipes to and from it; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert child.stdout is not None
    return child.stdout.readline().strip()
