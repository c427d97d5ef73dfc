"""`python -m benchmarks bars`: measures the bars and prints their table."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Awaitable, Callable

from rich.console import Console

from benchmarks.bars.footprint import imports, memory_held
from benchmarks.bars.loops import late_runs, loop_against_memory
from benchmarks.bars.outbox import full_batches, loop_against_file
from benchmarks.bars.reads import held_reads
from benchmarks.bars.table import Bar, bars_markdown, bars_table
from benchmarks.bars.wire import cold_reads, long_appends
from benchmarks.display import Display
from benchmarks.results import write_json
from benchmarks.sites import Sites

# Seconds between request and answer where the table says so.
LATENCY = 0.05

BARS: dict[str, Callable[[Sites], Awaitable[list[Bar]]]] = {
    "reads": lambda sites: held_reads(sites.at()),
    "cold": lambda sites: cold_reads(sites.at(LATENCY), latency=LATENCY),
    "appends": lambda sites: long_appends(sites.at()),
    "loop": lambda sites: loop_against_memory(sites.at(LATENCY), latency=LATENCY),
    "outbox-50": lambda sites: loop_against_file(sites.at(LATENCY), latency=LATENCY),
    "outbox-200": lambda sites: loop_against_file(sites.at(0.2), latency=0.2),
    "batches": lambda sites: full_batches(sites.at()),
    "memory": lambda sites: memory_held(sites.at()),
    "late": lambda sites: late_runs(sites.at()),
    "import": lambda _: imports(),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bars`."""
    parser.add_argument(
        "--only", choices=BARS, action="append", help="these lines only; may be given again"
    )


async def run(
    console: Console, display: Display, sites: Sites, options: argparse.Namespace
) -> None:
    """Measures the bars, one group after the other, and prints the table."""
    bars: list[Bar] = []
    for name in options.only or BARS:
        # What one group has left behind is no work of the next.
        gc.collect()
        with display.measuring(f"bars: {name}", 1):
            bars += await BARS[name](sites)
    console.print(bars_table(bars))
    if options.output is not None:
        write_json(options.output / "bars.json", "bars", bars)
        (options.output / "bars.md").write_text(bars_markdown(bars) + "\n", encoding="utf-8")
