"""What was found: figures, and bars that they have to reach; where; and all of it as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

Parameter: TypeAlias = "int | float | str"

# What the figures depend on. Those that are not installed are left out.
PACKAGES = (
    "cached-session",
    "openai",
    "openai-agents",
    "httpx2",
    "pydantic",
    "cachetools",
    "tenacity",
    "starlette",
    "h11",
    "uvicorn",
    "redis",
)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one kind of session under one workload.

    Attributes:
        work: The benchmark.
        workload: What was done, in words that stand alone.
        session: The kind of session.
        parameters: What tells this figure from the others of its benchmark.
        values: What was measured; the names carry the unit.
        series: What was measured in a sequence, in order, for plots.
    """

    work: str
    workload: str
    session: str
    parameters: Mapping[str, Parameter]
    values: Mapping[str, float]
    series: Mapping[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bar:
    """A ratio or count, and the most that it may be.

    Attributes:
        work: What is done, or what is held against what.
        measured: What was measured, as a ratio or in the bar's unit.
        most: The largest measured value that reaches the bar.
        workload: What exactly was done, and what stood against what.
        unit: The unit, empty for a ratio.
        words: What is to be reached, where "at most" so much does not say it.
    """

    work: str
    measured: float
    most: float
    workload: str = ""
    unit: str = ""
    words: str = ""

    @property
    def bar(self) -> str:
        """What is to be reached."""
        most = f"{self.most:g}" if self.unit or self.most >= 0.5 else f"1/{1 / self.most:g}"
        return self.words or f"at most {most} {self.unit}".rstrip()

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


def environment() -> dict[str, Any]:
    """What the figures were taken with. Names no host, no user and no path."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
    }


def write_json(path: Path, name: str, entries: Iterable[Any]) -> None:
    """Writes dataclasses to a file, with the environment.

    Args:
        path: The file.
        name: Under which key the entries stand.
        entries: Dataclasses.
    """
    content = {"environment": environment(), name: [asdict(entry) for entry in entries]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_figures(path: Path) -> list[Figure]:
    """Reads the figures that `write_json` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Figure(**entry) for entry in content["figures"]]
