"""``python -m cached_session.emulator``: the emulator in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from . import Emulator, Faults, Habits, SnapshotError
from .faults import FaultKind, parse_rates
from .port import LOOPBACK
from .rewriting import REWRITES

__all__ = ["main", "serve"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted or asked to terminate.

    Args:
        arguments: Command line without the program's name; by default that of the process.

    Returns:
        Exit status: 0 after a stop that was asked for, 1 if the port is taken, a
        file cannot be used, or the standard output cannot be written.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    return _run("python -m cached_session.emulator", arguments)


def serve(arguments: Sequence[str]) -> int:
    """The same, called as `cached-session serve`."""
    return _run("cached-session serve", arguments)


class _Output:
    """The standard output. Without it nobody learns of anything, and so its failing is the end.

    Attributes:
        failed: Set when it could not be written.
        error: Why.
    """

    def __init__(self) -> None:
        self.failed = threading.Event()
        self.error: OSError | None = None

    def say(self, what: object) -> None:
        """Prints a line; used by the server's thread, too, which an error must not reach."""
        try:
            print(what, flush=True)
        except OSError as error:
            self.error = error
            self.failed.set()


def _run(prog: str, arguments: Sequence[str] | None) -> int:
    parser = _parser(prog)
    options = parser.parse_args(arguments)
    output = _Output()
    try:
        faults = Faults(options.seed, parse_rates(options.faults)) if options.faults else None
        emulator = Emulator(
            latency=options.latency,
            faults=faults,
            habits=Habits.parse(options.habit),
            port=options.port,
            host=options.host,
            on_request=output.say if options.trace else None,
            initial=options.initial,
            state=options.state,
        )
    except SnapshotError as error:
        return _cannot(str(error))
    except OSError as error:
        return _cannot(f"{error.filename}: {error.strerror}")
    except ValueError as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        return _serve(emulator, output)
    return 0


def _cannot(why: str) -> int:
    print(why, file=sys.stderr)
    return 1


def _serve(emulator: Emulator, output: _Output) -> int:
    try:
        emulator.start()
    except SnapshotError as error:
        return _cannot(str(error))
    except OSError as error:
        if error.filename is not None:
            return _cannot(f"{error.filename}: {error.strerror}")
        return _cannot(f"cannot listen: {error.strerror}")
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        output.say(emulator.base_url)
        output.failed.wait()
    finally:
        emulator.stop()
    # Whoever read it has left, which is nothing to tell of.
    if output.error is not None and not isinstance(output.error, BrokenPipeError):
        print(f"standard output: {output.error.strerror}", file=sys.stderr)
    # What could not be written is kept, and the interpreter would complain of it at its end.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="A Conversations API server for offline work and tests. It prints its base "
        "URL when it is ready, to be used as base_url of an openai client, or as OPENAI_BASE_URL, "
        "with any API key. GET /health and POST /_emulator/reset need no key. It ends at SIGINT "
        "and SIGTERM.",
        epilog=f"kinds of faults: {', '.join(FaultKind)}. Exit status: 0 after a stop that was "
        "asked for, 1 if the port, a file or the standard output cannot be used, 2 if an option is "
        "wrong.",
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help=f"interface to listen on ({LOOPBACK}; 0.0.0.0: all, so that others can use it, too)",
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port (0, the default: a free one)")
    parser.add_argument(
        "--initial",
        metavar="FILE",
        help="JSON file of conversations to begin with, and to go back to at a reset",
    )
    parser.add_argument(
        "--state",
        metavar="FILE",
        help="keep each change in this file, and go on with what it holds at the next start",
    )
    parser.add_argument(
        "--latency", type=float, default=0.0, help="seconds between request and answer (0)"
    )
    parser.add_argument(
        "--faults",
        default="",
        metavar="KIND=RATE,...",
        help="share of requests that each kind of fault befalls, 0 to 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults (0)")
    parser.add_argument(
        "--habit",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a way in which to differ from the real service; may be given more than once: "
        f"{', '.join(Habits.names())}, largest_page=NUMBER, rewrites=KIND,... "
        f"({', '.join(REWRITES)})",
    )
    parser.add_argument(
        "--trace", action="store_true", help="print each request with its answer and its fault"
    )
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
