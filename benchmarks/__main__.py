"""`python -m benchmarks`: its options, and one benchmark after the other."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import guard, page
from benchmarks.bars import BARS
from benchmarks.display import (
    Display,
    bars_markdown,
    bars_table,
    figures_markdown,
    figures_table,
    guard_table,
    workloads,
)
from benchmarks.harness import Bench
from benchmarks.kinds import KINDS, REDIS, Kind, redis_answers
from benchmarks.plots import plot
from benchmarks.results import Bar, Figure, write_json
from benchmarks.sites import Sites
from benchmarks.work import WORKS
from benchmarks.work.loop import loop_on
from cached_session.commands.cli import run_command

PROGRAM = "python -m benchmarks"

# Where there is no terminal, tables are as wide as they have to be.
WIDTH = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs benchmarks.

    Args:
        arguments: The command line without the program's name; None: that of the process.

    Returns:
        The exit status: 0 if all was measured, whatever the figures are; 1 where the guard found
        too much or the standard output could not be written, 130 after an interrupt.

    Raises:
        SystemExit: The command line is wrong, or its help was asked for.
    """
    return run_command(lambda: _run(arguments), PROGRAM, PROGRAM)


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    with Sites(options.base_url) as sites:
        return asyncio.run(_measure(Display(console), sites, options))


async def _measure(display: Display, sites: Sites, options: argparse.Namespace) -> int:
    match options.work:
        case "bars":
            await _bars(display, sites, options)
        case "fleet":
            await _fleet(display, sites, options)
        case "guard":
            return await _guard(display, sites)
        case "page":
            page.write()
        case "all":
            names = [name for name, work in WORKS.items() if not work.own]
            # Each benchmark's own defaults.
            chosen = {name: _parser().parse_args([name]) for name in names}
            await _works(display, sites, options, chosen)
        case name:
            await _works(display, sites, options, {name: options})
    return 0


async def _works(
    display: Display,
    sites: Sites,
    options: argparse.Namespace,
    chosen: dict[str, argparse.Namespace],
) -> None:
    """Runs benchmarks, each with its options."""
    kinds = [] if all(WORKS[name].own for name in chosen) else await _kinds(options.sessions)
    bench = Bench(sites, kinds, display.measuring)
    # One run of each kind that nobody counts: what is imported at first use is there then.
    with display.measuring("warming up", len(kinds)) as step:
        for kind in kinds:
            await loop_on(kind, sites.at(), runs=1, after_run=step)
    for name, own in chosen.items():
        # What one benchmark has left behind is no work of the next.
        gc.collect()
        figures = [figure async for figure in WORKS[name].run(bench, own)]
        _report(display.console, name, figures, options.output)


def _report(console: Console, name: str, figures: list[Figure], output: Path | None) -> None:
    for workload in workloads(figures):
        console.print(f"  {workload}", markup=False, soft_wrap=True)
    console.print(figures_table(figures))
    if output is None:
        return
    write_json(output / f"{name}.json", "figures", figures)
    (output / f"{name}.md").write_text(figures_markdown(figures) + "\n", encoding="utf-8")
    for path in plot(name, figures, output):
        console.print(f"wrote {path.name}", markup=False)


async def _bars(display: Display, sites: Sites, options: argparse.Namespace) -> None:
    """Measures the bars, one group after the other, and prints the table."""
    bars: list[Bar] = []
    for name in options.only or BARS:
        gc.collect()
        with display.measuring(f"bars: {name}", 1):
            bars += await BARS[name](sites)
    _report_bars(display, "bars", bars, options.output)


async def _fleet(display: Display, sites: Sites, options: argparse.Namespace) -> None:
    """Measures the bars of a fleet, on PostgreSQL servers of their own."""
    # Only now: what it needs, the other benchmarks do not.
    from benchmarks import fleet

    bars = await fleet.measure(sites, lambda name: display.measuring(f"fleet: {name}", 1))
    _report_bars(display, "fleet", bars, options.output)


def _report_bars(display: Display, name: str, bars: list[Bar], output: Path | None) -> None:
    display.console.print(bars_table(bars))
    if output is not None:
        write_json(output / f"{name}.json", "bars", bars)
        (output / f"{name}.md").write_text(bars_markdown(bars) + "\n", encoding="utf-8")


async def _guard(display: Display, sites: Sites) -> int:
    """Measures, and what is too much up to twice more: noise seldom comes again to the same."""
    too_much: set[str] = set()
    for _ in range(3):
        checks = await guard.measure(sites.at())
        judged = [check for check in checks if not too_much or check.work in too_much]
        display.console.print(guard_table(judged))
        too_much = {check.work for check in judged if not check.met}
        if not too_much:
            return 0
    return 1


async def _kinds(options: Sequence[str] | None) -> list[Kind]:
    """The kinds that were asked for; by default all that can run here."""
    if options is not None:
        return [kind for kind in KINDS if kind.option in options]
    return [kind for kind in KINDS if kind.name != REDIS or await redis_answers()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measures CachedSession side by side with the SDK's session and with other "
        "stores,\nin one run on one machine.",
    )
    parser.set_defaults(base_url=None)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write JSON, tables and plots"
    )
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument(
        "--base-url",
        help="a Conversations API server to measure, its key in OPENAI_API_KEY; what is made "
        "there is deleted again (emulators in processes of their own)",
    )
    sessions = argparse.ArgumentParser(add_help=False)
    sessions.add_argument(
        "--sessions",
        type=_kind_options,
        help=f"kinds to compare, of {','.join(kind.option for kind in KINDS)} (all; redis where "
        "a server answers)",
    )
    commands = parser.add_subparsers(dest="work", required=True, metavar="WORK")
    own = ", ".join(name for name, work in WORKS.items() if work.own)
    commands.add_parser(
        "all", parents=[server, sessions, output], help=f"all of them but bars, fleet, guard, {own}"
    )
    table = commands.add_parser(
        "bars", parents=[server, output], help="the table of what has to be reached"
    )
    table.add_argument(
        "--only", choices=BARS, action="append", help="these lines only; may be given again"
    )
    commands.add_parser(
        "fleet", parents=[output], help="the table of a fleet, on PostgreSQL servers of its own"
    )
    commands.add_parser("guard", help="ratios that a change must not make much worse")
    commands.add_parser("page", help="put what was found into the pages of docs")
    each = [table]
    for work in WORKS.values():
        parents = [output] if work.own else [server, sessions, output]
        each.append(commands.add_parser(work.name, parents=parents, help=work.summary))
        work.options(each[-1])
    parser.epilog = "\n".join(map(_usage, each))
    return parser


def _usage(parser: argparse.ArgumentParser) -> str:
    return parser.format_usage().removeprefix("usage: ")


def _kind_options(text: str) -> list[str]:
    known = {kind.option for kind in KINDS}
    options = text.split(",")
    if not known.issuperset(options):
        raise argparse.ArgumentTypeError(f"must be of {', '.join(sorted(known))}")
    return options


if __name__ == "__main__":
    sys.exit(main())
