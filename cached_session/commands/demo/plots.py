"""The demo's times, run by run: drawn with characters, or into a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotille  # type: ignore[import-untyped]  # it has no types

from cached_session.commands.demo.loop import LoopResult

# Of the two lines; what tells them apart where there are no colours.
_COLOURS, _MARKS = ("yellow", "cyan"), ("x", "o")


def text_plot(results: Sequence[LoopResult], width: int, *, colours: bool) -> str:
    """Seconds for each run, as lines of text.

    Args:
        results: The loops, with as many runs each.
        width: Characters in a line at most.
        colours: Whether it may hold a terminal's colours.
    """
    figure = plotille.Figure()
    # The axis of the seconds stands beside it.
    figure.width, figure.height = max(20, width - 26), 12
    figure.with_colors, figure.color_mode = colours, "names"
    figure.x_label, figure.y_label = "run", "s"
    for kind in (int, float):
        figure.register_label_formatter(kind, _label)
    runs = len(results[0].seconds)
    # With room for the marks, which are left out at the very edge.
    figure.set_x_limits(1, runs + 1)
    figure.set_y_limits(0, 1.1 * max(max(result.seconds) for result in results))
    for result, colour, mark in zip(results, _COLOURS, _MARKS, strict=True):
        figure.plot(range(1, runs + 1), result.seconds, lc=colour, marker=mark, label=result.name)
    drawn: str = figure.show(legend=True)
    return "\n".join(line.rstrip() for line in drawn.splitlines())


def _label(value: float, chars: int, delta: float, left: bool = False) -> str:
    # Runs are counted; seconds have hundredths.
    text = f"{value:.2f}" if delta < 1 else f"{value:.0f}"
    return text.ljust(chars) if left else text.rjust(chars)


def draw_png(results: Sequence[LoopResult], path: str) -> None:
    """Draws the same into a PNG file, with matplotlib, which no extra brings.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure  # only where it is asked for

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Any = figure.subplots()
    for result in results:
        axes.plot(range(1, len(result.seconds) + 1), result.seconds, label=result.name)
    axes.set(xlabel="run", ylabel="seconds without the model's", ylim=(0, None))
    axes.legend()
    figure.savefig(path, format="png", dpi=150)
