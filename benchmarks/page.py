"""`page`: puts what was found into docs/benchmarks.md, docs/web.md and docs/fleet.md.

A table stands between `<!-- name -->` and `<!-- end -->`; what is between them
is replaced. Plots are copied.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.display import bars_markdown, figures_markdown
from benchmarks.results import Bar, Figure, read_figures

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "docs" / name for name in ("benchmarks.md", "web.md", "fleet.md")]
PLOTS = ROOT / "docs" / "plots"

# The whole grid of loops is too long for a page.
SHOWN: dict[str, Callable[[Figure], bool]] = {
    "loop": lambda figure: (
        figure.parameters.get("latency ms", 50) == 50 or int(figure.parameters["runs"]) > 30
    )
}


def fill(page: str, tables: dict[str, str]) -> str:
    """Replaces what stands between the marks of each table."""
    for name, table in tables.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = marks.sub(lambda found, text=table: f"{found[1]}\n{text}\n\n{found[2]}", page)  # type: ignore[misc]
    return page


def write() -> None:
    """Reads the results that are there, and writes the pages."""
    tables = {}
    for path in sorted(RESULTS.glob("*.json")):
        name = path.stem
        if name in ("bars", "fleet"):
            found = json.loads(path.read_text(encoding="utf-8"))
            tables[name] = bars_markdown([Bar(**entry) for entry in found["bars"]])
            place = "environment" if name == "bars" else f"{name} environment"
            tables[place] = _described(found["environment"])
        else:
            figures = [figure for figure in read_figures(path) if SHOWN.get(name, bool)(figure)]
            tables[name] = figures_markdown(figures)
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    for plot in RESULTS.glob("*.png"):
        shutil.copy(plot, PLOTS / plot.name)


def _described(environment: dict[str, Any]) -> str:
    """The environment in a sentence."""
    packages = ", ".join(
        f"{name} {version}"
        for name, version in environment["packages"].items()
        if name != "cached-session"
    )
    return (
        f"The figures on this page were taken on {environment['date']} with "
        f"{environment['python']} on {environment['platform']}, {environment['cpus']} CPUs, "
        f"{packages}."
    )
