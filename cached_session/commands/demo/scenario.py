"""What the demo's agent is asked, and what a scripted model says to it."""

from __future__ import annotations

from collections.abc import Iterator

from agents import Agent, Model, function_tool
from agents.items import TResponseOutputItem
from agents.testing import assistant_message, function_call

GOODS = ("lanterns", "tents", "ropes", "stoves", "kettles", "maps", "axes")


@function_tool
def stock(item: str) -> str:
    """Says how many of an item the warehouse holds.

    Args:
        item: The item's name.
    """
    return f"{_count(item)} {item} in stock"


@function_tool
def reserve(item: str, quantity: int) -> str:
    """Reserves some of an item.

    Args:
        item: The item's name.
        quantity: How many.
    """
    return f"{quantity} {item} reserved, {_count(item) - quantity} left"


def warehouse_agent(model: Model) -> Agent[None]:
    """The agent of the demo, on a model of any kind."""
    return Agent(
        name="Warehouse",
        instructions="You look after a warehouse. Use the tools. Answer in one sentence.",
        tools=[stock, reserve],
        model=model,
    )


def questions(runs: int) -> list[str]:
    """One question a run; each third one needs two tools at once."""
    asked = []
    for run in range(runs):
        item, other = _goods(run)
        if run % 3 == 2:
            asked.append(f"Reserve 2 {item}, and say how many {other} there are.")
        else:
            asked.append(f"How many {item} are there?")
    return asked


def script(runs: int) -> Iterator[list[TResponseOutputItem]]:
    """What the scripted model answers to `questions`, call by call."""
    for run in range(runs):
        item, other = _goods(run)
        if run % 3 == 2:
            yield [
                function_call(
                    "reserve", {"item": item, "quantity": 2}, call_id=f"call_{run}_reserve"
                ),
                function_call("stock", {"item": other}, call_id=f"call_{run}_stock"),
            ]
            yield [assistant_message(f"2 {item} are reserved; there are {_count(other)} {other}.")]
        else:
            yield [function_call("stock", {"item": item}, call_id=f"call_{run}_stock")]
            yield [assistant_message(f"There are {_count(item)} {item}.")]


def _goods(run: int) -> tuple[str, str]:
    return GOODS[run % len(GOODS)], GOODS[(run + 3) % len(GOODS)]


def _count(item: str) -> int:
    return 7 + 3 * len(item)
