"""The command line: finds the subcommand, says what is missing for it, hands over."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cached_session import __version__


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand. Its module is imported only when it is used.

    Attributes:
        summary: What it does, in one line.
        module: Where the function is that runs it.
        extra: The extra of this package that brings what it needs; "": it needs none.
        needs: The packages that come with that extra.
        function: The function's name. It is given the rest of the command line
            and returns an exit status.
    """

    summary: str
    module: str
    extra: str = ""
    needs: tuple[str, ...] = ()
    function: str = "main"


COMMANDS = {
    "demo": Command(
        "the same agent on OpenAIConversationsSession and on CachedSession, side by side",
        "cached_session.commands.demo.command",
        "cli",
        ("h11", "plotille", "rich", "starlette"),
    ),
    "serve": Command(
        "a Conversations API server for offline work and tests",
        "cached_session.emulator.__main__",
        "emulator",
        ("h11", "starlette"),
        function="serve",
    ),
    "outbox": Command(
        "what waits in an outbox: list, watch, show, retry, move, relay, discard, export, migrate",
        "cached_session.commands.outbox.command",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Args:
        arguments: The command line without the program's name; None: that of the process.

    Returns:
        The exit status: 0 if all went well, 1 also where the standard output
        could not be written, 130 after an interrupt.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    who = ["cached-session", *(name for name in given[:1] if name in COMMANDS)]
    return run_command(lambda: _run(given), "cached-session", " ".join(who))


def run_command(command: Callable[[], int], program: str, who: str) -> int:
    """Runs a command; what ends it from outside is told of in a line on standard error.

    Args:
        command: What to run; it returns an exit status.
        program: What is interrupted by Ctrl-C.
        who: Whom an error of the operating system ends, such as a full disk.

    Returns:
        The exit status, as in `main`.
    """
    try:
        try:
            return command()
        finally:
            # Here it can be told of. At its end the interpreter would complain in its own words.
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has left, which is nothing to tell of.
        _leave_output()
        return 1
    except OSError as error:
        reason = str(error)
        if _output_fails():
            _leave_output()
            reason = f"standard output: {error.strerror}"
        print(f"{who}: {reason}", file=sys.stderr)
        return 1


def _run(given: Sequence[str]) -> int:
    # The rest of the line belongs to the command, whose module is not read yet.
    name = _parser().parse_args(given[:1]).command
    command = COMMANDS[name]
    missing = [name for name in command.needs if importlib.util.find_spec(name) is None]
    if missing:
        needs = (
            f"cached-session {name} needs {', '.join(missing)}: the extra {command.extra} is not "
            f'installed. From a checkout: pip install ".[{command.extra}]"'
        )
        if {"-h", "--help"}.intersection(given[1:]):
            print(f"{name}: {command.summary}\n\nIts options cannot be listed here: {needs}")
            return 0
        print(needs, file=sys.stderr)
        return 1
    status: int = getattr(importlib.import_module(command.module), command.function)(given[1:])
    return status


def _output_fails() -> bool:
    """Whether it is the standard output that cannot be written: no error says so."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _leave_output() -> None:
    # What could not be written is kept, and tried again at the interpreter's end.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
