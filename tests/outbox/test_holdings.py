"""What a process holds, and for how long."""

from __future__ import annotations

from cached_session.outbox import Log, MemoryOutbox
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.postgres.lease import Lease
from tests.outbox.support import ADDRESS


class Left:
    """What a stopped event loop had."""

    abandoned = True

    def release(self, log: Log) -> None:
        log.release(ADDRESS)


async def test_what_could_not_be_released() -> None:
    """What was held under a lease that has run out is not held under the next one.

    Also where it was to be released, and the engine was away.
    """
    lease, left, others = Lease(30.0), Left(), Left()
    holdings = Holdings(lease=lease)
    lease.granted(lease.now(), anew=True)
    holdings.add(left)
    assert holdings.left(left) > 0
    lease.granted(lease.now(), anew=True)
    holdings.add(others)
    assert (holdings.left(left), holdings.left(others) > 0) == (0.0, True)
    await MemoryOutbox().transact(holdings.release)
    assert not holdings
    holdings.released(recorded=False)
    assert left in holdings
    assert (holdings.left(left), holdings.left(others) > 0) == (0.0, True)
