"""An outbox in a PostgreSQL database: one ledger for the workers of a fleet."""

from __future__ import annotations

import functools
import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from urllib.parse import quote, urlencode

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as _error:
    raise ImportError(
        'an outbox in a database needs psycopg: pip install "cached-session[postgres]"'
    ) from _error

from cached_session.errors import OutboxError
from cached_session.events import logger
from cached_session.outbox.ciphers import Cipher, Encrypted
from cached_session.outbox.holdings import Holdings
from cached_session.outbox.postgres.engine import Engine
from cached_session.outbox.postgres.engine import schema as schema  # for those who look after it
from cached_session.outbox.postgres.lease import Lease
from cached_session.outbox.postgres.log import PostgresLog
from cached_session.outbox.shared import MIB, Contents, check_seconds, how_to_move
from cached_session.outbox.writer import Outcome, Threaded, Work

# A lease that is shorter than this ends while a request is on its way.
_SHORTEST_LEASE = 3.0

# The parts of an address that are told beside user, host, port and database: somebody who is to
# run a command on the same database needs them.
_TOLD = ("hostaddr", "service", "sslmode", "sslrootcert", "target_session_attrs")

# How long a call may take, and then again for finding out what became of it.
_PATIENCE = 10.0

# Seconds between two removals of what nobody has used for long, and of how many conversations at
# a time: calls that come meanwhile wait for it.
_EXPIRE_AFTER = 3600.0
_AT_A_TIME = 200


class PostgresOutbox(Threaded):
    """A durable outbox that the workers of a fleet share, each on whatever machine.

    Safe to use from several threads, event loops and processes. After a fork,
    the child makes one of its own. Nothing is opened before the first use: the
    tables are made then, if they are missing and the role may make them. The
    connection is kept until `aclose`, for sessions that come one after the other.

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
            if nobody has changed it and nothing waits.
        cipher: Encrypts what was said before it leaves the process, as one of
            `fernet_cipher` does. All workers need one that decrypts what the
            others encrypt. None: it is recorded as it is.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: An argument is out of range, or `conninfo` is none.
    """

    vouches = True

    # To connect takes longer than a call, and each opening leaves a row in `owners`.
    stays_open = True

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
        cipher: Cipher | None = None,
    ) -> None:
        self._name, self._place = named(conninfo)
        contents = Contents(self._name) if cipher is None else Encrypted(self._name, cipher)
        super().__init__(
            max_items, max_bytes, max_age, max_wait, max_window_bytes, account, contents
        )
        check_seconds("lease", lease, "")
        if lease < _SHORTEST_LEASE:
            raise ValueError(f"lease must be at least {_SHORTEST_LEASE:g} seconds")
        check_seconds("keep_for", keep_for, "")
        self._conninfo = conninfo
        self._keep_for = keep_for
        self._lease = Lease(lease)
        self.holdings: Holdings = Holdings(lease=self._lease)
        # `list` says which there are; the help of `outbox`, what can be done.
        self.advice: str = (
            f"`cached-session outbox list {shlex.quote(self._name)}` shows it; see "
            "`cached-session outbox --help`"
        )

    def how_to_move(self, number: int) -> str:
        """What somebody can do about a backlog of another account, as a sentence."""
        return how_to_move(self._name, number, self.account)

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
        self._name = name
        self._keep_for = keep_for
        self._expire_at = -math.inf
        self._log = PostgresLog(self._engine, lease, max_window_bytes)

    def run(self, works: Sequence[Work], *, reads: bool) -> Iterable[Outcome]:
        """Does one after the other: one transaction for several conversations would deadlock.

        Each is told of before the next one: by that, the lease may be another one than what was
        claimed is held under.
        """
        return map(self._one, works)

    def _one(self, work: Work) -> Outcome:
        try:
            return Outcome(work(self._log), None)
        except BaseException as error:
            return Outcome(None, error)

    def tend(self) -> None:
        """Extends the lease."""
        self._engine.renew()

    def tidy(self) -> None:
        """Removes what nobody has used for long, a part of it at a time, and once an hour."""
        if time.monotonic() < self._expire_at:
            return
        self._expire_at = time.monotonic() + _EXPIRE_AFTER
        try:
            if self._engine.call("expire", self._keep_for, _AT_A_TIME)[0] == _AT_A_TIME:
                # There may be more: the next idle second goes on.
                self._expire_at = -math.inf
        except OutboxError as error:
            # The calls of those who use the outbox say so, too.
            logger.debug("%s: nothing old was removed: %s", self._name, error)

    def close(self) -> None:
        """Lets others have what is held, and ends the connection."""
        self._engine.close()


def connect(conninfo: str, *, make: bool) -> Engine:
    """A connection of its own to a database, for those who look after its tables.

    Args:
        conninfo: The database; see `PostgresOutbox`.
        make: Whether the tables are made if there are none.

    Raises:
        ValueError: `conninfo` is not what libpq takes.
        OutboxError: The engine cannot be reached or used, or has no tables.
    """
    return Engine(conninfo, named(conninfo)[0], Lease(_SHORTEST_LEASE), _PATIENCE, make=make)


def named(conninfo: object) -> tuple[str, tuple[object, ...]]:
    """A database as a URL without what must not be told, and what tells it from others.

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
        ) from None
    ports = str(found.get("port") or "")
    address = conninfo.partition("://")[2].partition("?")[0]
    before, _, after = address.partition("@") if "@" in address else ("", "", address)
    in_url = re.match(r"postgres(ql)?://", conninfo) is not None
    odd = "@" in after or "/" in before or bool(ports.strip("0123456789,"))
    odd = odd or "@" in str(found.get("host", ""))[1:] or "@" in str(found.get("dbname", ""))
    if in_url and odd:
        # libpq would take a part of the password for the host, the port or the database, and
        # tell it.
        raise ValueError(
            "conninfo must have %40 in the place of an @ in a user's name or a password, and %2F "
            "in the place of a /"
        )
    keys = ("service", "user", "host", "hostaddr", "port", "dbname")
    return _url({key: str(value) for key, value in found.items()}), tuple(map(found.get, keys))


def _url(found: dict[str, str]) -> str:
    user, host, port, name = (found.get(key, "") for key in ("user", "host", "port", "dbname"))
    more = {key: found[key] for key in _TOLD if key in found}
    if not re.fullmatch(r"[A-Za-z0-9._-]*", host) or not re.fullmatch(r"\d*", port):
        # Several, or a socket's directory: only here a URL takes them as they are.
        more = {"host": host, **({"port": port} if port else {}), **more}
        host = port = ""
    words = "postgresql://" + (f"{quote(user, safe='')}@" if user else "") + host
    words += (f":{port}" if port else "") + (f"/{quote(name, safe='')}" if name else "")
    # What precedes the options is a path, if only an empty one.
    return words + ("/" * (not name) + f"?{urlencode(more, safe='/,')}" if more else "")
