"""What is shown: progress while a benchmark runs, a table at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.results import Bar, Figure


class Display:
    """Shows how far each measurement has come: bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console

    @contextlib.contextmanager
    def measuring(self, name: str, steps: int) -> Iterator[Callable[[], None]]:
        """Shows one measurement; what it yields is called after each of its steps."""
        if not self.console.is_terminal:
            started = time.perf_counter()
            yield lambda: None
            self.console.print(f"{name}: {time.perf_counter() - started:.1f} s", markup=False)
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=steps)
            yield lambda: progress.advance(task)


def figures_table(figures: Sequence[Figure]) -> Table:
    """The figures of one benchmark, a line each."""
    parameters = [
        name
        for name in dict.fromkeys(name for figure in figures for name in figure.parameters)
        # What is the same everywhere is said by the workload.
        if len({figure.parameters.get(name) for figure in figures}) > 1
    ]
    values = list(dict.fromkeys(name for figure in figures for name in figure.values))
    table = Table(box=box.ROUNDED)
    table.add_column("session", no_wrap=True, min_width=max(len(f.session) for f in figures))
    for name in [*parameters, *values]:
        table.add_column(name, justify="right")
    for figure in figures:
        cells = [figure.parameters.get(name, "") for name in parameters]
        table.add_row(
            figure.session,
            *(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells),
            *(_number(figure.values.get(name)) for name in values),
        )
    return table


def workloads(figures: Sequence[Figure]) -> list[str]:
    """What was done, each workload once."""
    return list(dict.fromkeys(figure.workload for figure in figures))


def figures_markdown(figures: Sequence[Figure]) -> str:
    """The same table for a page."""
    table = figures_table(figures)
    cells = [list(column.cells) for column in table.columns]
    lines = [[str(column.header) for column in table.columns]]
    lines.append(["---"] + ["---:"] * (len(cells) - 1))
    lines.extend([str(cell) for cell in row] for row in zip(*cells, strict=True))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bars_table(bars: Sequence[Bar]) -> Table:
    """Work, bar, measured, met or not, workload."""
    table = Table("work", "bar", "measured", "met", "workload", show_lines=True)
    for bar in bars:
        table.add_row(bar.work, bar.bar, bar.shown, "yes" if bar.met else "NO", bar.workload)
    return table


def bars_markdown(bars: Sequence[Bar]) -> str:
    """The same table for a page."""
    rows = [
        f"| {bar.work} | {bar.bar} | {bar.shown} | {'yes' if bar.met else 'no'} | {bar.workload} |"
        for bar in bars
    ]
    return "\n".join(["| work | bar | measured | met | workload |", "|---|---|---|---|---|", *rows])


def guard_table(bars: Sequence[Bar]) -> Table:
    """What is held against what, measured, and its bound."""
    table = Table("what", "measured", "at most", "")
    for bar in bars:
        verdict = "ok" if bar.met else "TOO MUCH"
        table.add_row(bar.work, f"{bar.measured:.3g}", f"{bar.most:.3g}", verdict)
    return table


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or (value == int(value) and abs(value) >= 1):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
