"""Items to batches: what goes into one append request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cached_session.core.items import Outgoing

# "You may add up to 20 items at a time"; more is answered with HTTP 400.
# Source: OpenAI's OpenAPI document, recorded traffic.
MAX_ITEMS = 20

# No limit on the body is published. A bound keeps one attempt short enough for
# its timeout on a slow line; a larger item still travels, alone.
MAX_BYTES = 1 << 20


def batches(items: Sequence[Outgoing]) -> Iterator[tuple[Outgoing, ...]]:
    """Cuts items into batches of at most `MAX_ITEMS` items and `MAX_BYTES` bytes, in order.

    Nothing is added to a batch or taken from it once it was sent, or a lost
    answer could not be compared with what the server has.
    """
    batch: list[Outgoing] = []
    size = 0
    for item in items:
        if batch and (len(batch) == MAX_ITEMS or size + len(item) > MAX_BYTES):
            yield tuple(batch)
            batch, size = [], 0
        batch.append(item)
        size += len(item)
    if batch:
        yield tuple(batch)
