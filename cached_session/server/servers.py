"""What answers have shown of the servers that this process talks to.

Nothing of it is needed for what is right: where it is missing, a request more
is made, or an outcome stays unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from cachetools import LRUCache

from cached_session.core.items import Held, Outgoing, unhold
from cached_session.core.matching import VERBATIM, Rewriting, learned, text_pairs
from cached_session.forks import Lock
from cached_session.server.connections import Account


class Server:
    """What is known of a server, as one account sees it.

    Attributes:
        rewriting: How it rewrites the texts that it stores.
        largest_page: How many items it lists in one page at most.
        denies_more: Whether it says on full pages that nothing follows, whatever does.
    """

    def __init__(self) -> None:
        self.rewriting: Rewriting = VERBATIM
        self.largest_page = PAGE
        self.denies_more = False

    def answered(self, sent: Sequence[Outgoing], listed: Sequence[Held]) -> None:
        """Learns from the answer to an append."""
        for item, held in zip(sent, listed, strict=True):
            # Not by `items.decode`, at a sixth of its time: of numbers, which this
            # decoder rounds where they are large, nothing is learned.
            texts = text_pairs(msgspec.json.decode(item), unhold(held))
            self.rewriting = learned(self.rewriting, texts)


# "A limit on the number of objects to be returned, between 1 and 100"; above
# is answered with HTTP 400. Source: OpenAI's OpenAPI document, recorded traffic.
PAGE = 100

_lock = Lock()
# Clients that show no account are one each.
_servers: LRUCache[Account, Server] = LRUCache(256)


def server_of(account: Account) -> Server:
    """What is known of the server of an account, the same object at every call."""
    with _lock:
        found = _servers.get(account)
        if found is None:
            found = _servers[account] = Server()
        return found
