"""Writing what waits somewhere else, byte for byte."""

from __future__ import annotations

import argparse
import sys

from cached_session.commands.outbox.records import Stop
from cached_session.errors import counted, verb
from cached_session.outbox.admin import OutboxAdmin


async def export(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    """Writes the waiting items as JSON lines, to the standard output or to a new file.

    Raises:
        Stop: The file cannot be made or written.
        OutboxError: There is no such backlog, or it cannot be read.
        OSError: The standard output cannot be written.
    """
    path = options.output
    if path in (None, "-"):
        lines = await admin.lines(options.number)
        sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
        sys.stdout.buffer.flush()
        return
    try:
        lines = await admin.export(options.number, path)
    except FileExistsError:
        raise Stop(f"{path} exists already, and was left as it is.") from None
    except OSError as error:
        raise Stop(f"{path}: {error.strerror}. Nothing was left there.") from error
    size, are = sum(len(line) + 1 for line in lines), verb(len(lines), "is", "are")
    print(f"{counted(len(lines), 'item')}, {counted(size, 'byte')}, {are} in {path}.")
