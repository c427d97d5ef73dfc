"""Writing what waits somewhere else, byte for byte."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from cached_session.commands.outbox.records import Stop, read
from cached_session.errors import counted, verb
from cached_session.outbox import Outbox


async def export(outbox: Outbox, options: argparse.Namespace) -> None:
    """Writes the waiting items as JSON lines, to the standard output or to a new file.

    Raises:
        Stop: There is no such backlog, or the file cannot be made or written.
        OSError: The standard output cannot be written.
    """
    _, mailbox = await outbox.transact(lambda log: read(log, options))
    lines = b"".join(row.data + b"\n" for row in mailbox.rows)
    if options.output in (None, "-"):
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
        return
    try:
        _write(options.output, lines)
    except FileExistsError:
        raise Stop(f"{options.output} exists already, and was left as it is.") from None
    except OSError as error:
        raise Stop(f"{options.output}: {error.strerror}. Nothing was left there.") from error
    items, are = counted(len(mailbox.rows), "item"), verb(len(mailbox.rows), "is", "are")
    print(f"{items}, {counted(len(lines), 'byte')}, {are} in {options.output}.")


def _write(path: str, lines: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        # A part would pass for all of it, and stand in the way of the next attempt.
        Path(path).unlink(missing_ok=True)
        raise
