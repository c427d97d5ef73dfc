"""An outbox in a PostgreSQL database: one ledger for the workers of a fleet."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import psycopg
from psycopg.conninfo import conninfo_to_dict

from cached_session.outbox.holdings import Holdings
from cached_session.outbox.postgres.engine import Engine
from cached_session.outbox.postgres.lease import Lease
from cached_session.outbox.postgres.log import PostgresLog
from cached_session.outbox.shared import MIB, check_seconds
from cached_session.outbox.writer import Outcome, Threaded, Work

# A lease that is shorter than this ends while a request is on its way.
_SHORTEST_LEASE = 3.0

# How long a call may take, and then again for finding out what became of it.
_PATIENCE = 10.0


class PostgresOutbox(Threaded):
    """A durable outbox that the workers of a fleet share, each on whatever machine.

    Safe to use from several threads, event loops and processes. After a fork,
    the child makes one of its own. Nothing is opened before the first use: the
    tables are made then, if they are missing and the role may make them.

    Whoever sends what waits of a conversation has it for as long as its lease
    lasts. It is extended while something is held. When a worker ends, another
    one goes on after the lease at the latest.

    Needs `pip install cached-session[postgres]`.

    Args:
        conninfo: The database, as libpq takes it: a URL
            ("postgresql://app@db/agents"), or "host=db dbname=agents". What it
            leaves out comes from libpq's environment variables (PGHOST,
            PGPASSWORD, PGSERVICE, PGSSLMODE ...). May lead to pgbouncer in
            transaction mode.
        account: A name for the account that all who use the outbox belong to,
            such as "prod". Clients with different keys then have one backlog,
            and one copy, of a conversation: name it where keys are rotated.
            None: each key has its own.
        max_items: How many items may wait in one backlog.
        max_bytes: How many bytes of JSON may wait in one backlog.
        max_age: Seconds after which an item counts as waiting too long; None: never.
        max_wait: Seconds that a call waits for room at most.
        max_window_bytes: Bytes of what is kept of each conversation; the
            oldest items go first. 0: nothing is kept.
        lease: Seconds after which others may go on with what a worker that has
            died, or cannot reach the engine, had begun to send. No request is
            begun without one, nor may one take longer.
        keep_for: Seconds after which what is kept of a conversation is removed,
            if nobody has used it and nothing waits.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range, or `conninfo` is none.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        account: str | None = None,
        max_items: int = 100_000,
        max_bytes: int = 256 * MIB,
        max_age: float | None = None,
        max_wait: float = 10.0,
        max_window_bytes: int = 8 * MIB,
        lease: float = 30.0,
        keep_for: float = 30 * 86_400.0,
    ) -> None:
        super().__init__(max_items, max_bytes, max_age, max_wait, max_window_bytes, account)
        self._name, self._place = _named(conninfo)
        check_seconds("lease", lease, "")
        if lease < _SHORTEST_LEASE:
            raise ValueError(f"lease must be at least {_SHORTEST_LEASE:g} seconds")
        check_seconds("keep_for", keep_for, "")
        self._conninfo = conninfo
        self._keep_for = keep_for
        self._lease = Lease(lease)
        self.holdings = Holdings(lease=self._lease)

    vouches = True

    @property
    def lease(self) -> float:
        """Seconds after which others may go on; see the class."""
        return self._lease.seconds

    def same_as(self, other: object) -> bool:
        """Whether both record in the same database."""
        return isinstance(other, PostgresOutbox) and other._place == self._place

    @property
    def _opening(self) -> Callable[[], _Database]:
        return functools.partial(
            _Database,
            self._conninfo,
            self._name,
            self._lease,
            max_window_bytes=self.max_window_bytes,
            keep_for=self._keep_for,
        )

    def __repr__(self) -> str:
        return f"PostgresOutbox({self._name!r})"


class _Database:
    """An outbox that is open; see `Opened`."""

    def __init__(
        self, conninfo: str, name: str, lease: Lease, *, max_window_bytes: int, keep_for: float
    ) -> None:
        self._engine = Engine(conninfo, name, lease, _PATIENCE)
        self._engine.expire(keep_for)
        self._log = PostgresLog(self._engine, lease, max_window_bytes)

    def run(self, works: Sequence[Work], *, reads: bool) -> list[Outcome]:
        """Does one after the other: one transaction for several conversations would deadlock."""
        return [self._one(work) for work in works]

    def _one(self, work: Work) -> Outcome:
        try:
            return Outcome(work(self._log), None)
        except BaseException as error:
            return Outcome(None, error)

    def tend(self) -> None:
        """Extends the lease."""
        self._engine.renew()

    def close(self) -> None:
        """Lets others have what is held, and ends the connection."""
        self._engine.close()


def _named(conninfo: object) -> tuple[str, tuple[object, ...]]:
    """A database in words, without what must not be told, and what tells it from others.

    Raises:
        TypeError: `conninfo` is no str.
        ValueError: It is not what libpq takes.
    """
    if not isinstance(conninfo, str):
        raise TypeError(f"conninfo must be a str, not {type(conninfo).__name__}")
    try:
        found = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        found = None
    if found is None:
        # Without libpq's text, which quotes what it could not read.
        raise ValueError(
            "conninfo must be an address as libpq takes it, such as postgresql://app@db/agents"
        )
    ports = str(found.get("port") or "")
    before, _, after = conninfo.partition("://")[2].partition("?")[0].partition("@")
    if "@" in after or "/" in before or ports.strip("0123456789,"):
        # A part of the password would be taken for the host, the port or the database's name.
        raise ValueError(
            "conninfo: what is before the host has to be percent-encoded: a password's / as %2F, "
            "its @ as %40"
        )
    keys = ("service", "user", "host", "hostaddr", "port", "dbname")
    user, host, port, name = (found.get(key) for key in ("user", "host", "port", "dbname"))
    words = "postgresql://" + (f"{user}@" if user else "") + f"{host or ''}"
    words += (f":{port}" if port else "") + (f"/{name}" if name else "")
    return words, tuple(found.get(key) for key in keys)
