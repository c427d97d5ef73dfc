"""What the demo shows: progress while it runs, a table at its end."""

from __future__ import annotations

from typing import Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from cached_session.commands.demo.loop import LoopResult

# How often a line is printed where there is no terminal to draw on.
LINE_EVERY = 10


class LoopProgress:
    """Shows how far each loop has come: bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console, names: tuple[str, ...], runs: int) -> None:
        self._console = console
        self._runs = runs
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        if console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[requests]:>4} requests {task.fields[seconds]:>6.2f} s"),
                console=console,
                expand=True,
            )
            for name in names:
                self._tasks[name] = self._bars.add_task(name, total=runs, requests=0, seconds=0.0)

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def after_run(self, result: LoopResult) -> None:
        """Shows a loop after one more of its runs."""
        done = len(result.seconds)
        if self._bars is not None:
            self._bars.update(
                self._tasks[result.name],
                completed=done,
                requests=result.requests,
                seconds=result.total,
            )
        elif done % LINE_EVERY == 0 or done == self._runs:
            self._console.print(
                f"{result.name}: run {done} of {self._runs}, "
                f"{result.requests} requests, {result.total:.2f} s"
            )


def results_table(
    one: LoopResult, other: LoopResult, *, same_history: bool, same_inputs: bool
) -> Table:
    """The closing table: one column for each kind of session."""
    table = Table(box=box.ROUNDED)
    table.add_column()
    for result in (one, other):
        table.add_column(result.name, justify="right")

    def row(name: str, *cells: str) -> None:
        table.add_row(name, *cells)

    row("requests", str(one.requests), str(other.requests))
    row("total time", _seconds(one.total), _seconds(other.total))
    row("first run", _seconds(one.seconds[0]), _seconds(other.seconds[0]))
    row("last run", _seconds(one.seconds[-1]), _seconds(other.seconds[-1]))
    row("history on the server", f"{len(one.history)} items", _verdict(same_history))
    row("model inputs", f"{len(one.inputs)} calls", _verdict(same_inputs))
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _verdict(same: bool) -> str:
    return "the same" if same else "DIFFERENT"
