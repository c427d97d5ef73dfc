"""`cached-session outbox`: its subcommands.

They work on the file while others use it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from openai import OpenAIError

from cached_session.errors import CachedSessionError
from cached_session.outbox import SQLiteOutbox, Store
from cached_session.outbox_command.records import (
    Stop,
    age,
    conversation,
    find,
    moment,
    overview,
    read,
    state,
    visible,
    word,
)
from cached_session.outbox_command.retry import retry

_HEAD = ("number", "conversation", "items", "bytes", "oldest", "state", "window bytes")


def main(arguments: Sequence[str]) -> int:
    """Runs one of the subcommands.

    Args:
        arguments: The command line behind `outbox`.

    Returns:
        Exit status: 0 if it did what it was asked, 1 if not.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    options = _parser().parse_args(arguments)
    try:
        _check(options.file)
        asyncio.run(_run(options))
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has left; the interpreter would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Stop, CachedSessionError) as error:
        return _fail(str(error))
    except OpenAIError as error:
        # Its text may quote an item.
        return _fail(f"the server could not be asked ({type(error).__name__}).")
    except OSError as error:
        return _fail(f"{error.filename or options.file}: {error.strerror}")
    return 0


async def _run(options: argparse.Namespace) -> None:
    outbox = SQLiteOutbox(options.file)
    try:
        await options.run(outbox, options)
    finally:
        await outbox.close()


def _check(path: str) -> None:
    # Opening an outbox makes its file, and an outbox of an empty one.
    if not os.path.exists(path):
        raise Stop(f"there is no file {path}.")
    if not os.path.getsize(path):
        raise Stop(f"{path} is empty. It is no outbox yet, and was left as it is.")


async def _list(outbox: SQLiteOutbox, options: argparse.Namespace) -> None:
    found = await outbox.transact(lambda store: store.summaries())
    if not found:
        print("Nothing waits, and no window is stored.")
        return
    lines = [_HEAD, *map(overview, found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


async def _show(outbox: SQLiteOutbox, options: argparse.Namespace) -> None:
    summary, rows = await outbox.transact(lambda store: read(store, options))
    address = summary.address
    sealed = f", {summary.sealed} of them may have been sent" if summary.sealed else ""
    oldest = "" if summary.oldest is None else f"{moment(summary.oldest)}, {age(summary.oldest)}"
    for name, value in (
        ("number", str(summary.number)),
        ("conversation", conversation(address)),
        ("server", address.base_url),
        ("organization", address.organization),
        ("project", address.project),
        ("items", f"{summary.items}{sealed}"),
        ("bytes", str(summary.size)),
        ("oldest", oldest),
        ("state", state(summary)),
        ("window bytes", str(summary.window)),
    ):
        print(f"{name:14}{visible(value) or '-'}")
    for row in rows:
        item = json.loads(row.data)
        kind = word(item.get("type") or ("message" if "role" in item else None))
        sent = "sealed, may have been sent" if row.sealed else "not sent"
        print(
            f"{row.seq}  {kind}  {word(item.get('role'))}  {len(row.data)} bytes  "
            f"{moment(row.accepted_at)}  {sent}"
        )
        if options.content:
            print(visible(row.data.decode()))


async def _export(outbox: SQLiteOutbox, options: argparse.Namespace) -> None:
    _, rows = await outbox.transact(lambda store: read(store, options))
    lines = b"".join(row.data + b"\n" for row in rows)
    if options.output is None:
        sys.stdout.buffer.write(lines)
        sys.stdout.buffer.flush()
        return
    try:
        descriptor = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Stop(f"{options.output} exists already, and was left as it is.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    print(f"{len(rows)} items, {len(lines)} bytes, are in {options.output}.")


async def _discard(outbox: SQLiteOutbox, options: argparse.Namespace) -> None:
    summary = await outbox.transact(lambda store: find(store, options))
    living = (
        f"a living process is sending backlog {summary.number}, and nothing was removed. Call "
        "clear_session() there, which deletes the conversation, too; or end the process, and "
        "give the command again."
    )
    if summary.owned:
        raise Stop(living)
    what = (
        f"{summary.items} items, {summary.size} bytes, that wait for "
        f"{conversation(summary.address)}"
    )
    if summary.sealed:
        what += f"; {summary.sealed} of them may be on the server already"
    if not options.yes:
        raise Stop(f"this would remove {what}. Nothing was removed. Give --yes to remove it.")
    print(f"Removing {what}.")

    def work(store: Store) -> int:
        address = summary.address
        if store.claim(address) is None:
            raise Stop(living)
        store.resume(address)
        removed = store.drop(address, sealed=True)
        store.release(address)
        return removed

    print(f"Removed {await outbox.transact(work)} items.")


def _fail(message: str) -> int:
    print(f"cached-session outbox: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cached-session outbox",
        description="Shows what waits in the file of an SQLiteOutbox, and decides about it. The "
        "file may be in use.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        command.add_argument("file", metavar="FILE", help="the outbox's file")
        if name != "list":
            command.add_argument(
                "number", metavar="NUMBER", type=int, help="the backlog's number, as `list` shows"
            )
        return command

    add("list", _list, "lists the backlogs, one a line, without content")
    show = add("show", _show, "shows one backlog and its items, one a line")
    show.add_argument("--content", action="store_true", help="show each item's JSON, too")
    again = add("retry", retry, "clears what a backlog was paused for, and sends it")
    again.add_argument("--base-url", metavar="URL", help="the API's base URL (the recorded one)")
    again.add_argument(
        "--any-account",
        action="store_true",
        help="send under the present key even if it is not the recorded one",
    )
    again.add_argument(
        "--timeout", type=_seconds, default=60.0, help="seconds that it may take (60)"
    )
    discard = add("discard", _discard, "removes what waits in a backlog")
    discard.add_argument("--yes", action="store_true", help="really remove it")
    export = add("export", _export, "writes the waiting items as JSON lines, unchanged")
    export.add_argument("--output", metavar="PATH", help="a new file (standard output)")
    return parser


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return float(text)
