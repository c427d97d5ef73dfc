"""The command line: finds the subcommand, says what is missing for it, hands over."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. Its module is imported only when it is used.

    Attributes:
        summary: What it does, in one line.
        module: Where its `main(arguments)` is, which returns an exit status.
        extra: The extra of this package that brings what it needs; "": it needs none.
        needs: The packages that come with that extra.
    """

    summary: str
    module: str
    extra: str = ""
    needs: tuple[str, ...] = ()


COMMANDS = {
    "demo": Command(
        "the same agent on OpenAIConversationsSession and on CachedSession, side by side",
        "cached_session.demo.command",
        "cli",
        ("rich", "starlette", "uvicorn"),
    ),
    "serve": Command(
        "a Conversations API server for offline work and tests",
        "cached_session.emulator.__main__",
        "emulator",
        ("starlette", "uvicorn"),
    ),
    "outbox": Command(
        "what waits in an outbox's file: list, show, retry, discard, export",
        "cached_session.outbox_command.command",
    ),
    "bench": Command(
        "time, requests, CPU and memory, side by side with other sessions",
        "cached_session.bench.command",
        "bench",
        ("rich", "starlette", "uvicorn"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: The command line without the program's name; None: that of the process.

    Returns:
        The exit status: 0 if all went well, 130 after an interrupt.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    # The rest of the line belongs to the command, whose module is not read yet.
    name = _parser().parse_args(given[:1]).command
    command = COMMANDS[name]
    missing = [name for name in command.needs if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"cached-session {name} needs {' and '.join(missing)}: "
            f'pip install "cached-session[{command.extra}]"',
            file=sys.stderr,
        )
        return 1
    try:
        status: int = importlib.import_module(command.module).main(given[1:])
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="cached-session",
        usage="cached-session [-h] [--version] COMMAND [OPTION ...]",
        description="A caching, write-through session for the OpenAI Agents SDK.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
                "",
                "cached-session COMMAND --help lists a command's options.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version("cached-session")
    )
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
