"""A bar, and the table of them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of the table.

    Attributes:
        work: What is done.
        bar: What is to be reached, in words.
        most: The largest measured value that reaches it.
        measured: What was measured, as a ratio or in the bar's unit.
        unit: The unit, empty for a ratio.
        workload: What exactly was done, and what stood against what.
    """

    work: str
    bar: str
    most: float
    measured: float
    unit: str
    workload: str

    @property
    def met(self) -> bool:
        """Whether the bar is reached."""
        return self.measured <= self.most

    @property
    def shown(self) -> str:
        """The measured value as text."""
        if self.unit == "%":
            return f"{self.measured:.1f} %"
        if self.unit:
            return f"{self.measured:.0f} {self.unit}"
        if self.measured < 0.5:
            return f"1/{1 / self.measured:.2f}"
        return f"{self.measured:.2f}"


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
