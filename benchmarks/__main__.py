"""`python -m benchmarks`: its options, and one benchmark after the other."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.bars import command as bars
from benchmarks.display import Display, figures_markdown, figures_table, workloads
from benchmarks.harness import Bench
from benchmarks.kinds import KINDS, REDIS, Kind, redis_answers
from benchmarks.plots import plot
from benchmarks.results import Figure, write_json
from benchmarks.sites import Sites
from benchmarks.work import WORKS
from cached_session.cli import run_command

# Where there is no terminal, tables are as wide as they have to be.
WIDTH = 160


PROGRAM = "python -m benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs benchmarks.

    Args:
        arguments: The command line without the program's name; None: that of the process.

    Returns:
        The exit status: 0 if all was measured, whatever the figures are; 1 where the standard
        output could not be written, 130 after an interrupt.

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
        asyncio.run(_measure(console, sites, options))
    return 0


async def _measure(console: Console, sites: Sites, options: argparse.Namespace) -> None:
    display = Display(console)
    if options.work == "bars":
        await bars.run(console, display, sites, options)
        return
    kinds = await _kinds(options.sessions)
    bench = Bench(sites, kinds, display.measuring)
    await bench.warm_up()
    names = list(WORKS) if options.work == "all" else [options.work]
    for name in names:
        # For `all`, each benchmark's own defaults.
        chosen = _parser().parse_args([name]) if options.work == "all" else options
        # What one benchmark has left behind is no work of the next.
        gc.collect()
        figures = [figure async for figure in WORKS[name].run(bench, chosen)]
        _report(console, name, figures, options.output)


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
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--base-url",
        help="a Conversations API server to measure, its key in OPENAI_API_KEY; what is made "
        "there is deleted again (emulators in processes of their own)",
    )
    common.add_argument(
        "--output", type=Path, metavar="FOLDER", help="where to write JSON, tables and plots"
    )
    works = argparse.ArgumentParser(add_help=False, parents=[common])
    works.add_argument(
        "--sessions",
        type=_kind_options,
        help=f"kinds to compare, of {','.join(kind.option for kind in KINDS)} (all; redis where "
        "a server answers)",
    )
    commands = parser.add_subparsers(dest="work", required=True, metavar="WORK")
    commands.add_parser("all", parents=[works], help="all of them but bars")
    table = commands.add_parser(
        "bars", parents=[common], help="the table of what has to be reached"
    )
    bars.add_options(table)
    each = [table]
    for work in WORKS.values():
        each.append(commands.add_parser(work.name, parents=[works], help=work.summary))
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
