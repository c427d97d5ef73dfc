"""The plots of the figures, as PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from benchmarks.results import Figure


def plot(name: str, figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Draws what is to be drawn of one benchmark; returns the files."""
    written = []
    for title, draw in _PLOTS.get(name, {}).items():
        canvas = Canvas(figsize=(7.2, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        if not draw(axes, figures):
            continue
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
        path = folder / f"{title}.png"
        canvas.savefig(path, dpi=110)
        written.append(path)
    return written


def _lines(
    across: str, up: str, *, log: bool = True, where: Callable[[Figure], bool] = lambda _: True
) -> Callable[[Axes, Sequence[Figure]], bool]:
    """A line for each kind of session: a value over a parameter."""

    def draw(axes: Axes, figures: Sequence[Figure]) -> bool:
        chosen = [figure for figure in figures if where(figure)]
        if not chosen:
            return False
        for session in dict.fromkeys(figure.session for figure in chosen):
            points = [
                (float(figure.parameters.get(across, 0)), figure.values[up])
                for figure in chosen
                if figure.session == session
            ]
            axes.plot(*zip(*points, strict=True), marker="o", label=session)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        return True

    return draw


def _longest_loop(axes: Axes, figures: Sequence[Figure]) -> bool:
    """Each run of the longest loop there is, at the highest latency that it was run at."""
    loops = [figure for figure in figures if figure.series.get("run ms")]
    if not loops:
        return False
    key = ("runs", "latency ms", "tools")

    def rank(figure: Figure) -> tuple[float, ...]:
        return tuple(float(figure.parameters.get(name, 0)) for name in key)

    longest = max(map(rank, loops))
    for figure in loops:
        if rank(figure) == longest:
            series = figure.series["run ms"]
            axes.plot(range(1, len(series) + 1), series, label=figure.session, linewidth=1)
    runs, latency, tools = longest
    axes.set_title(f"{runs:g} runs, {tools:g} tool calls each, {latency:g} ms latency", size=10)
    axes.set_xlabel("run")
    axes.set_ylabel("ms")
    axes.set_ylim(bottom=0)
    return True


def _by_latency(axes: Axes, figures: Sequence[Figure]) -> bool:
    """The short loops with one tool call, by latency."""
    shortest = min((figure.parameters["runs"] for figure in figures), default=0, key=float)
    draw = _lines(
        "latency ms",
        "total s",
        log=False,
        where=lambda figure: (
            figure.parameters["runs"] == shortest and figure.parameters["tools"] == 1
        ),
    )
    axes.set_title(f"{shortest} runs with 1 tool call each", size=10)
    return draw(axes, figures)


def _slowest_cold(axes: Axes, figures: Sequence[Figure]) -> bool:
    """First reads at the highest latency that they were made at."""
    latency = max(
        (float(figure.parameters.get("latency ms", 0)) for figure in figures), default=0.0
    )
    axes.set_title(f"first get_items(), {latency:g} ms latency", size=10)
    return _lines(
        "items", "p50 ms", where=lambda figure: figure.parameters.get("latency ms", 0) == latency
    )(axes, figures)


_PLOTS: dict[str, dict[str, Callable[[Axes, Sequence[Figure]], bool]]] = {
    "loop": {"loop-runs": _longest_loop, "loop-latency": _by_latency},
    "reads": {
        "reads-all": _lines(
            "items", "p50 us", where=lambda figure: figure.parameters["limit"] == "all"
        ),
        "reads-20": _lines(
            "items", "p50 us", where=lambda figure: figure.parameters["limit"] == 20
        ),
    },
    "cold": {"cold": _slowest_cold},
    "appends": {
        "appends": _lines(
            "items", "p50 ms", where=lambda figure: figure.parameters["sessions"] == 1
        )
    },
    "flaky": {
        "flaky-doubled": _lines("faults %", "items doubled", log=False),
        "flaky-time": _lines("faults %", "total s", log=False),
    },
    "memory": {},
    "crowd": {},
}
