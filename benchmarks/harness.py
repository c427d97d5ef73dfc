"""What every benchmark is given, and what every benchmark is."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.kinds import Kind
from benchmarks.results import Figure, Parameter
from benchmarks.sites import Sites


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a benchmark runs.

    Attributes:
        sites: The servers.
        kinds: The kinds of session to compare.
        measuring: Shows one measurement of so many steps; see `Display`.
    """

    sites: Sites
    kinds: Sequence[Kind]
    measuring: Callable[[str, int], AbstractContextManager[Callable[[], None]]]

    def latencies(self, asked: Sequence[float]) -> Sequence[float]:
        """The latencies to run at. A user's own server has its own, so there is one."""
        return [0.0] if self.sites.foreign else asked

    def at(self, latency: float) -> str:
        """How the latency is put into words."""
        return "its own latency" if self.sites.foreign else f"{latency * 1e3:g} ms latency"

    def where(self, latency: float) -> dict[str, Parameter]:
        """The latency as a parameter of figures; a user's own server has none that is known."""
        return {} if self.sites.foreign else {"latency ms": latency * 1e3}


Run: TypeAlias = Callable[[Bench, argparse.Namespace], AsyncIterator[Figure]]


@dataclass(frozen=True, slots=True)
class Work:
    """One benchmark.

    Attributes:
        name: What the command line calls it.
        summary: What it measures, in one line.
        options: Adds its options to a parser; their defaults are sensible sizes.
        run: Measures, and yields each figure when it is there.
        own: It has servers and sessions of its own, and is no part of "all".
    """

    name: str
    summary: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Run
    own: bool = False


def count(number: int, noun: str) -> str:
    """`1 run`, `30 runs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def numbers(text: str) -> list[int]:
    """Reads `0,100,1000`."""
    values = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if min(values) < 0:
        raise argparse.ArgumentTypeError("must be whole numbers, with commas between them")
    return values


def amounts(text: str) -> list[int]:
    """Reads `100,1000`: whole numbers from 1 on."""
    values = numbers(text)
    if min(values) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more: there would be nothing to measure")
    return values


def amount(text: str) -> int:
    """Reads one whole number from 1 on."""
    values = amounts(text)
    if len(values) > 1:
        raise argparse.ArgumentTypeError("must be one whole number")
    return values[0]


def shares(text: str) -> list[float]:
    """Reads `0,0.05`: numbers that are 0 or more."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [-1.0]
    if not all(0 <= value < float("inf") for value in values):
        raise argparse.ArgumentTypeError("must be numbers from 0 on, with commas between them")
    return values
