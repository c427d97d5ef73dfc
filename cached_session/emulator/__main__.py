"""``python -m cached_session.emulator``: the emulator in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from . import Emulator, Faults, Habits
from .faults import FaultKind, parse_rates
from .log import LoggedRequest

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until it is interrupted or asked to terminate.

    Args:
        arguments: Command line without the program's name; by default that of the process.

    Returns:
        Exit status: 0 after a stop that was asked for, 1 if the port is taken.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        faults = Faults(options.seed, parse_rates(options.faults)) if options.faults else None
        emulator = Emulator(
            latency=options.latency,
            faults=faults,
            habits=Habits(**dict.fromkeys(options.habit, True)),
            port=options.port,
            on_request=_trace if options.trace else None,
        )
    except ValueError as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        return _serve(emulator)
    return 0


def _serve(emulator: Emulator) -> int:
    try:
        emulator.start()
    except OSError as error:
        print(f"cannot listen: {error.strerror}", file=sys.stderr)
        return 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        print(emulator.base_url, flush=True)
        threading.Event().wait()
    finally:
        emulator.stop()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cached_session.emulator",
        description="A Conversations API server for offline work and tests, on 127.0.0.1. It "
        "prints its base URL, to be used as base_url of an openai client with any API key.",
        epilog=f"kinds of faults: {', '.join(FaultKind)}",
    )
    parser.add_argument("--port", type=int, default=0, help="TCP port (0, the default: a free one)")
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
        choices=Habits.names(),
        help="a way in which to differ from the real service; may be given more than once",
    )
    parser.add_argument(
        "--trace", action="store_true", help="print each request with its answer and its fault"
    )
    return parser


def _trace(entry: LoggedRequest) -> None:
    print(entry, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
