"""`cached-session outbox`: its subcommands.

They work on the outbox while others use it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from openai import OpenAIError

from cached_session.commands.outbox.export import export
from cached_session.commands.outbox.keys import KEYS, KEYS_FILE, cipher
from cached_session.commands.outbox.migrate import migrate
from cached_session.commands.outbox.records import (
    Stop,
    age,
    aligned,
    conversation,
    facts,
    fitting,
    key,
    moment,
    overview,
    server,
    state,
    visible,
    word,
)
from cached_session.errors import CachedSessionError, counted, verb
from cached_session.outbox import Address, BacklogSummary
from cached_session.outbox.admin import OutboxAdmin, in_use
from cached_session.outbox.place import in_database
from cached_session.outbox.records import WaitingItem
from cached_session.outbox.shared import Unreadable, check_account

_HEAD = ("number", "conversation", "items", "bytes", "oldest", "state")

_PAUSES = """\
A backlog is paused when the server refused a batch, or when it cannot be found
out whether a batch is on the server. All of it is kept, in order, and nothing
of it is sent until somebody decides:

  retry    when the reason is gone: clears the pause, and sends what waits
  move     when another key is to send it: changes whose it is, and sends nothing
  discard  when it is not wanted: clears the pause, and removes what waits
  export   first, to keep it: writes what waits to a file, and changes nothing

cached-session outbox COMMAND --help lists a command's options."""

_RELAYING = """\
It sends, with the key in OPENAI_API_KEY and to OPENAI_BASE_URL, what was recorded
for that account and belongs to no living process. What is paused it leaves as it
is. It says once a minute how it stands, and what it takes over.

exit status:
  0  SIGTERM or SIGINT has stopped it; with --once, nothing is left
  1  the outbox or the key cannot be used
  2  the command line is wrong
  3  with --once: something is left, which is paused or which a living process has"""


def main(arguments: Sequence[str]) -> int:
    """Runs one of the subcommands.

    Args:
        arguments: The command line behind `outbox`.

    Returns:
        Exit status: 0 if it did what it was asked, 1 if not, and that of `relay`.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
        OSError: The standard output cannot be written.
    """
    options, more = _parser(arguments).parse_known_args(arguments)
    if more:
        # The parser of all subcommands would show its own usage.
        options.parser.error(f"unrecognized arguments: {' '.join(more)}")
    if sys.stdout is None:
        return _fail("the standard output is closed. Nothing was done.")
    try:
        if options.run is migrate:
            migrate(options.url, print_sql=options.print_sql)
            return 0
        return asyncio.run(_run(options))
    except Unreadable as error:
        return _fail(f"{error} The keys go into {KEYS}, or a file that {KEYS_FILE} names.")
    except (Stop, CachedSessionError) as error:
        return _fail(str(error))
    except OpenAIError as error:
        # Its text may quote an item.
        return _fail(f"the server could not be asked ({type(error).__name__}).")


async def _run(options: argparse.Namespace) -> int:
    try:
        keys = cipher()
    except Stop as error:
        if options.run not in (_list, _show, _watch, _discard, _move):
            raise
        print(f"cached-session outbox: {error} It goes without.", file=sys.stderr)
        keys = None
    # Those that decide for an account have the option.
    account = getattr(options, "account", None)
    async with OutboxAdmin(options.outbox, account=account, cipher=keys) as admin:
        status: int | None = await options.run(admin, options)
        return status or 0


async def _list(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    found = await admin.backlogs()
    chosen = [one for one in found if options.all or one.items or one.paused is not None]
    if options.json:
        print(json.dumps([facts(one) for one in chosen], indent=2))
        return
    idle = counted(len(found) - len(chosen), "idle conversation")
    if not chosen:
        print(f"Nothing waits. --all lists {idle}, too." if found else "Nothing waits.")
        return
    lines = [_HEAD, *map(overview, chosen)]
    if sys.stdout.isatty():
        lines = fitting(lines, shutil.get_terminal_size().columns)
    print("\n".join(aligned(lines)))
    if len(chosen) < len(found):
        print(f"--all lists {idle}, too.")


async def _watch(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    if importlib.util.find_spec("rich") is None:
        raise Stop(
            "watch needs rich: the extra cli is not installed. From a checkout: "
            'pip install ".[cli]". `list` shows the same, once.'
        )
    from cached_session.commands.outbox.watch import watch  # only now: rich is an extra

    await watch(admin, options)


async def _retry(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    # Only now: it brings the SDK, which the other commands do without.
    from cached_session.commands.outbox.retry import retry

    await retry(admin, options)


async def _relay(admin: OutboxAdmin, options: argparse.Namespace) -> int:
    from cached_session.commands.outbox.relay import relay  # only now: see `_retry`

    return await relay(admin, options)


async def _move(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    from cached_session.commands.outbox.move import move  # only now: see `_retry`

    await move(admin, options)


async def _show(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    summary, items = await _read(admin, options)
    address = summary.address
    became = "refused" if any(one.refused for one in items) else "may have been sent"
    sealed = f", {summary.sealed} of them {became}" if summary.sealed else ""
    oldest = "" if summary.oldest is None else f"{moment(summary.oldest)}, {age(summary.oldest)}"
    for name, value in (
        ("number", str(summary.number)),
        ("conversation", conversation(address)),
        ("server", server(address.base_url)),
        ("organization", address.organization),
        ("project", address.project),
        ("key", await _key(address)),
        ("items", f"{summary.items}{sealed}"),
        ("bytes", str(summary.size)),
        ("oldest", oldest),
        ("state", state(summary)),
        ("window bytes", str(summary.window)),
    ):
        print(f"{name:14}{visible(value) or '-'}")
    for one in items:
        item = {"type": "encrypted"} if one.data is None else json.loads(one.data)
        kind = word(item.get("type") or ("message" if "role" in item else None))
        sent = f"sealed, {became}" if one.sealed else "not sent"
        print(
            f"{one.seq}  {kind}  {word(item.get('role'))}  {counted(one.size, 'byte')}  "
            f"{moment(one.accepted_at)}  {sent}"
        )
        if options.content:
            print("encrypted" if one.data is None else visible(one.data.decode()))


async def _key(address: Address) -> str:
    from cached_session.commands.outbox.retry import fits  # only now: see `_retry`

    same = await fits(address)
    if same is None:
        return key(address)
    return f"{key(address)}, {'' if same else 'not '}that of the key in OPENAI_API_KEY"


async def _read(
    admin: OutboxAdmin, options: argparse.Namespace
) -> tuple[BacklogSummary, list[WaitingItem]]:
    return await admin.backlog(options.number), await admin.waiting(options.number)


async def _discard(admin: OutboxAdmin, options: argparse.Namespace) -> None:
    summary, items = await _read(admin, options)
    if not summary.items and await admin.unreadable(options.number):
        what = "what is noted of it, which cannot be decrypted"
        if not options.yes:
            raise Stop(f"nothing waits; this would remove {what}. Give --yes to remove it.")
        await admin.discard(options.number)
        print(f"Nothing waits in backlog {summary.number}. Removed {what}.")
        return
    if not summary.items:
        pause = ""
        if summary.paused is not None and options.yes:
            await admin.retry(options.number)
            pause = " The pause is cleared."
        elif summary.paused is not None:
            pause = " It is paused; --yes clears the pause."
        print(f"Nothing waits in backlog {summary.number}.{pause}")
        return
    if summary.owned:
        raise in_use(summary)
    what = (
        f"{counted(summary.items, 'item')}, {counted(summary.size, 'byte')}, that "
        f"{verb(summary.items, 'waits', 'wait')} for {conversation(summary.address)}"
    )
    if summary.sealed and not any(one.refused for one in items):
        what += f"; {summary.sealed} of them may be on the server already"
    if not options.yes:
        raise Stop(f"this would remove {what}. Nothing was removed. Give --yes to remove it.")
    print(f"Removing {what}.")
    print(f"Removed {counted(await admin.discard(options.number), 'item')}.")


def _fail(message: str) -> int:
    print(f"cached-session outbox: {message}", file=sys.stderr)
    return 1


class _Parser(argparse.ArgumentParser):
    """One whose errors do not quote the address of a database, which may hold a password."""

    given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        for address in filter(in_database, self.given):
            message = message.replace(address, "URL")
        super().error(re.sub(r"postgres(ql)?://[^\s']*", "URL", message))


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cached-session outbox",
        description="Shows what waits in an outbox, and decides about it: in the file of an\n"
        "SQLiteOutbox, or the database of a PostgresOutbox. Others may use it meanwhile.",
        epilog=_PAUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.given = given
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[..., Any], text: str) -> _Parser:
        command: _Parser = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + "."
        )
        command.set_defaults(run=run, parser=command)
        command.given = given
        command.add_argument(
            "outbox",
            metavar="FILE_OR_URL",
            help="the outbox's file; or its database, as postgresql://app@db/agents, or as "
            '"host=db dbname=agents"',
        )
        if name not in ("list", "watch", "relay"):
            command.add_argument(
                "number", metavar="NUMBER", type=int, help="the backlog's number, as `list` shows"
            )
        return command

    table = add("list", _list, "lists the backlogs, one a line, without content")
    table.add_argument("--all", action="store_true", help="those in which nothing waits, too")
    table.add_argument("--json", action="store_true", help="as JSON, for programs")
    live = add("watch", _watch, "shows the backlogs in a live table, until Ctrl-C")
    live.add_argument("--all", action="store_true", help="those in which nothing waits, too")
    live.add_argument(
        "--every", metavar="SECONDS", type=_interval, default=1.0, help="how often it looks (1)"
    )
    show = add("show", _show, "shows one backlog and its items, one a line")
    show.add_argument("--content", action="store_true", help="show each item's JSON, too")
    again = add("retry", _retry, "clears what a backlog was paused for, and sends it")
    again.add_argument("--base-url", metavar="URL", help="the API's base URL (the recorded one)")
    again.add_argument(
        "--any-account",
        action="store_true",
        help="send under the present key even if it is not the recorded one",
    )
    again.add_argument(
        "--timeout", type=_seconds, default=60.0, help="seconds that it may take (60)"
    )
    again.add_argument(
        "--account",
        metavar="NAME",
        type=_account,
        help="what the program passes as account=, such as prod; the present key is one of that "
        "account",
    )
    moving = add("move", _move, "moves a backlog to another account, and sends nothing")
    moving.add_argument(
        "--account",
        metavar="NAME",
        type=_account,
        help="what the program passes as account=, such as prod (the account of the present key)",
    )
    discard = add("discard", _discard, "removes what waits in a backlog")
    discard.add_argument("--yes", action="store_true", help="really remove it")
    out = add("export", export, "writes the waiting items as JSON lines, unchanged")
    out.add_argument("--output", metavar="PATH", help="a new file (-, the standard output)")
    relaying = add("relay", _relay, "sends what nobody who lives sends, until it is stopped")
    relaying.epilog = _RELAYING
    relaying.formatter_class = argparse.RawDescriptionHelpFormatter
    relaying.add_argument(
        "--account",
        metavar="NAME",
        type=_account,
        help="what the program passes as account=, such as prod; the present key is one of that "
        "account",
    )
    relaying.add_argument(
        "--every", metavar="SECONDS", type=_interval, default=1.0, help="how often it looks (1)"
    )
    relaying.add_argument(
        "--grace",
        metavar="SECONDS",
        type=_seconds,
        default=8.0,
        help="when it is stopped, how long it waits for requests that are in flight (8)",
    )
    relaying.add_argument(
        "--once", action="store_true", help="end when nothing is left that can be sent"
    )
    relaying.add_argument(
        "--quiet", action="store_true", help="say only what needs a person, and no figures"
    )
    making = commands.add_parser(
        "migrate",
        help="makes the tables of an outbox in a database, or says that they are there",
        description="Makes the tables of an outbox in a database, in the schema cached_session, "
        "as a role that may; or says that they are there. docs/fleet.md says what the role of a "
        "program needs then.",
    )
    making.set_defaults(run=migrate, parser=making)
    making.given = given
    making.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        help='the database, as postgresql://owner@db/agents, or as "host=db dbname=agents"',
    )
    making.add_argument(
        "--print-sql",
        action="store_true",
        help="print the statements that make the tables, for psql -1, and connect to nothing",
    )
    return parser


def _account(text: str) -> str:
    try:
        check_account(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _interval(text: str) -> float:
    if not _is_number(text) or not float(text):
        raise argparse.ArgumentTypeError("must be a number of seconds, more than 0")
    return float(text)


def _seconds(text: str) -> float:
    if not _is_number(text):
        raise argparse.ArgumentTypeError("must be a number of seconds, 0 or more")
    return float(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?", text) is not None
