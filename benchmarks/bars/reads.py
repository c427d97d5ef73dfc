"""Bars on reads of what is held: ratios of calls that were made in turn."""

from __future__ import annotations

from agents import SQLiteSession

from benchmarks.bars.table import Bar
from benchmarks.kinds import Counter, cached_session
from benchmarks.payload import items, structural_copy
from benchmarks.sites import Site, delete
from benchmarks.timing import alternate, percentile


async def held_reads(
    site: Site, *, size: int = 1000, large: int = 10_000, few: int = 20, rounds: int = 100
) -> list[Bar]:
    """The four bars on held reads.

    Args:
        site: A server; none of the reads that are timed asks it.
        size: Items held where all of them are read.
        large: Items held where the newest `few` are read.
        few: See `large`.
        rounds: How often each read is timed, in turn with what it is held against.
    """
    async with site.client(Counter()) as client:
        made = [await site.fill(client, items(count)) for count in (size, large, few * 5)]
        whole, long, short = [cached_session(client, conversation_id) for conversation_id in made]
        held, newest = await whole.get_items(), await long.get_items()
        newest = newest[-few:]
        await short.get_items()
        local = SQLiteSession("bench")
        await local.add_items(held)

        async def bare() -> object:
            return structural_copy(held)

        async def bare_few() -> object:
            return structural_copy(newest)

        try:
            all_of = await alternate(
                {"ours": whole.get_items, "bare": bare, "SQLite": local.get_items},
                rounds=rounds,
                calls=5,
            )
            some_of = await alternate(
                {
                    "ours": lambda: long.get_items(few),
                    "bare": bare_few,
                    "short": lambda: short.get_items(few),
                },
                rounds=rounds,
                calls=20,
            )
        finally:
            local.close()
            for conversation_id in made:
                await delete(client, conversation_id)
    quick = {name: percentile(taken, 10) for name, taken in all_of.items()}
    quick_few = {name: percentile(taken, 10) for name, taken in some_of.items()}
    how = f"p10 of {len(all_of['ours'])} calls each, in turn"
    how_few = f"p10 of {len(some_of['ours'])} calls each, in turn"
    return [
        Bar(
            f"`get_items()` of {size:,} items held, against the bare structural copy",
            "at most 1.15",
            1.15,
            quick["ours"] / quick["bare"],
            "",
            f"a plain recursive copy of the same items; {how}: {_ms(quick['ours'])} against "
            f"{_ms(quick['bare'])}",
        ),
        Bar(
            f"`get_items({few})` of {large:,} items held, against the copy of {few}",
            "at most 1.5",
            1.5,
            quick_few["ours"] / quick_few["bare"],
            "",
            f"a plain recursive copy of the same items; {how_few}: {_us(quick_few['ours'])} "
            f"against {_us(quick_few['bare'])}",
        ),
        Bar(
            f"`get_items({few})` of {large:,} items held, against the same of {few * 5:,} held",
            "the same (at most 1.1)",
            1.1,
            quick_few["ours"] / quick_few["short"],
            "",
            f"{how_few}: {_us(quick_few['ours'])} against {_us(quick_few['short'])}",
        ),
        Bar(
            f'`get_items()` of {size:,} held, against `SQLiteSession(":memory:")`',
            "at most 1/5",
            1 / 5,
            quick["ours"] / quick["SQLite"],
            "",
            f"the same items; {how}: {_ms(quick['ours'])} against {_ms(quick['SQLite'])}",
        ),
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
