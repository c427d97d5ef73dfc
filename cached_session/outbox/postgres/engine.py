"""Calls to a PostgreSQL engine that may go away at any moment, each done once."""

from __future__ import annotations

import contextlib
import functools
import importlib.resources
import os
import secrets
import select
import shlex
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cached_session.errors import OutboxError, OutboxUnavailable
from cached_session.events import logger
from cached_session.outbox.postgres.lease import Lease
from cached_session.outbox.postgres.texts import hold_any_text

T = TypeVar("T")

VERSION = 1
"""Of the schema that this release knows."""

# Any number that no other program is likely to lock.
_LOCK = 0x63736F78

# Seconds to wait for a connection, where neither the address nor the environment says it.
_CONNECT_TIMEOUT = "5"

# What libpq is told where the address does not say it. One call that waits for a silent engine
# keeps all other calls of the process waiting.
_DEFAULTS = {
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "fallback_application_name": "cached-session",
}

_SECRET = ("password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret")

# Seconds for which the engine keeps what it knows of an owner, at the least; see `expire`.
_ROWS_STAY = 86_400.0 / 2

_TURN_IS_OVER, _LEASE_HAS_ENDED, _TOO_ISOLATED = "CS001", "CS002", "CS004"
# The engine chose this call to end a deadlock, or a conflict with another one: it did nothing.
_AGAIN = {"40001", "40P01"}
_NO_TABLES = {"42P01", "3F000"}
_NOT_ALLOWED, _READ_ONLY = "42501", "25006"
# The engine could not do this call, and may do the next one: it is a standby, a lock did not come
# in time, somebody has cancelled the call; and by class: no room or memory, a disk that fails.
_FOR_NOW = {_READ_ONLY, "55P03", "57014"}
_FOR_NOW_CLASSES = {"53", "58"}

# What a caller is told of a call that was not done. A call that only reads may be the first part
# of an append, which has to hear that nothing was recorded.
_UNRECORDED = "nothing was recorded"
_UNREAD = "it could not be read"
_NEITHER = f"{_UNREAD}, and {_UNRECORDED}"


class OutcomeLost(OutboxUnavailable):
    """A call was sent, and the engine stayed away: whether it was done is not known."""


class TurnIsOver(Exception):
    """The turn that a call belongs to is over. It has done nothing."""


class _Unsent(Exception):
    """What a call was given cannot be sent. It has not been, and the connection is as before."""


class _Silent(psycopg.OperationalError):
    """The engine has not answered in time."""


class _Connection(psycopg.Connection[Any]):
    """A connection on which no call waits for ever."""

    deadline = float("inf")

    def wait(self, gen: Any, *arguments: Any, **more: Any) -> Any:
        return super().wait(_until(gen, self.deadline), *arguments, **more)


def _until(steps: Any, deadline: float) -> Generator[Any, Any, Any]:
    """The steps of a call, as long as there is time."""
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                raise _Silent("it did not answer in time")
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


class Engine:
    """One owner's connection to an engine, made anew whenever it was lost.

    Belongs to the thread that makes it. It keeps no state in the engine's session, so that each
    call may come to another one: behind pgbouncer, in transaction mode.

    Args:
        conninfo: As libpq takes it; see `PostgresOutbox`.
        name: The outbox, for errors; without a password.
        lease: Who has what was claimed through here.
        patience: Seconds that a call may take, and then again for finding out what became of it.
        make: Whether the tables are made if there are none.

    Attributes:
        token: Who calls, as an owner of conversations.
        version: Of the tables.
        made: Whether they were made just now.

    Raises:
        OutboxError: The engine cannot be reached, or has no tables and this role may not make them.
    """

    def __init__(
        self, conninfo: str, name: str, lease: Lease, patience: float, *, make: bool = True
    ) -> None:
        self.token: str = secrets.token_hex(16)
        self.made: bool = False
        self._conninfo = conninfo
        self._name = name
        self._lease = lease
        self._patience = patience
        self._connection: _Connection | None = None
        # The number of the last call that must not be done twice.
        self._number = 0
        # The number of the last one that the engine has confirmed, and when it did.
        self._confirmed, self._confirmed_at = 0, 0.0
        # Whether a call was sent of which it is not known whether it was done.
        self._open_question = False
        # Whether each call sets the isolation of its transaction, by statements of their own:
        # this engine, or this role, has another level by default.
        self._says_isolation = False
        self._renewed = -float("inf")
        try:
            self._prepare(make=make)
        except BaseException:
            # The caller gets no engine that it could close.
            self._drop()
            raise

    def once(self, function: str, *arguments: Any) -> Any:
        """Calls a function that must not be done twice, for one row; see `call`.

        The engine knows the owner's last call by its number. So it may be repeated after its
        answer was lost: it is done then, or what came of it is said again. One that is still on
        its way then is not done when it arrives.

        Raises:
            OutcomeLost: It was sent, and whether it was done could not be found out.
        """
        number: int | None = None

        def attempt() -> Any:
            nonlocal number
            if number is None:
                # Only now: connecting may have taken one.
                number = self._number = self._number + 1
            row = self._ask(function, (self.token, number, *arguments))[0]
            self._confirmed, self._confirmed_at = number, self._lease.now()
            return row

        return self._try(attempt, records=True)

    def in_time(self, function: str, *arguments: Any) -> Any:
        """Calls a function that may be done twice, but not late, for one row; see `call`.

        It bears the number of the last call that must not be done twice. Where its answer is lost,
        that one is followed by another before it is repeated: when it arrives then, it is not done.
        """

        def attempt() -> Any:
            return self._ask(function, (self.token, self._number, *arguments))[0]

        return self._try(attempt, in_time=True)

    def call(self, function: str, *arguments: Any) -> Any:
        """Calls a function that may be done whenever and as often as it likes, for one row.

        Args:
            function: Its name.
            arguments: In its order.

        Returns:
            The row, as a named tuple.

        Raises:
            OutboxUnavailable: The engine cannot be reached, or went away and stayed away.
            OutboxError: The engine refused; nothing was done.
            TurnIsOver: So it is; nothing was done.
        """
        return self._try(lambda: self._ask(function, arguments)[0])

    def read(self, function: str, *arguments: Any) -> Any:
        """Calls a function that changes nothing, for one row; errors as in `call`."""
        return self.rows(function, *arguments)[0]

    def value(self, function: str, *arguments: Any) -> Any:
        """Calls a function of one value that changes nothing; errors as in `call`."""

        def attempt() -> Any:
            # The engine has that in less time than a row of a set.
            return self._ask(function, arguments, "SELECT")[0][0]

        return self._try(attempt, undone=_NEITHER)

    def rows(self, function: str, *arguments: Any) -> list[Any]:
        """Calls a function that changes nothing, for all of its rows; errors as in `call`."""
        return self._try(lambda: self._ask(function, arguments), undone=_NEITHER)

    def renew(self) -> None:
        """Extends the lease, at most once a second. It does not matter whether it can."""
        if time.monotonic() - self._renewed < 1.0:
            return
        self._renewed = time.monotonic()
        try:
            asked = self._lease.now()
            row = self.call("renew", self.token, self._lease.seconds)
            self.leased(asked, lapsed=row[0])
        except OutboxError as error:
            # Whoever sends looks at how much of the lease is left.
            logger.debug("%s: the lease was not extended: %s", self._name, error)

    def leased(self, asked: float, *, lapsed: bool) -> None:
        """Notes that the engine has extended the lease, on the way."""
        self._lease.granted(asked, anew=lapsed)

    def close(self) -> None:
        """Lets others have what this owner had, and ends the connection."""
        self._lease.ended()
        if self._connection is not None or self._open_question:
            try:
                self._connected()
                self._ask("end_lease", (self.token,))
            except psycopg.Error as error:
                # Its lease runs out by itself.
                logger.debug("%s: closed without a word to the engine: %s", self._name, error)
            self._drop()

    def explain(self, error: psycopg.Error, undone: str) -> OutboxError:
        """The error to tell callers of: what is so, and what to do; `undone`: of the call."""
        state = error.sqlstate
        if state in _NO_TABLES:
            return OutboxError(
                f"{self._name} has no tables of an outbox, or those of another release. Run "
                "`cached-session outbox migrate URL` as a role that may make them."
            )
        if state == _NOT_ALLOWED:
            return OutboxError(
                f"{self._name}: this role may not use the outbox's tables. Grant it USAGE on the "
                "schema cached_session, and SELECT, INSERT, UPDATE, DELETE on all tables in it."
            )
        if state == _READ_ONLY:
            return OutboxUnavailable(
                f"{self._name} is read-only, a standby perhaps; nothing was recorded. Name the "
                "primary, or add target_session_attrs=read-write to the address."
            )
        # Not the engine's words: they may quote what was to be recorded.
        for_now = state in _FOR_NOW or (state or "")[:2] in _FOR_NOW_CLASSES
        return (OutboxUnavailable if for_now else OutboxError)(
            f"{self._name} refused a call ({type(error).__name__}, SQLSTATE {state}); {undone}. "
            "The engine's log says more."
        )

    def _said(self, error: psycopg.Error) -> str:
        """Why there is no connection, in libpq's words, on one line and without the password."""
        said = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        found = conninfo_to_dict(self._conninfo)
        for secret in filter(None, map(found.get, _SECRET)):
            said = said.replace(str(secret), "...")
        return said

    # How

    def _try(
        self,
        attempt: Callable[[], T],
        *,
        in_time: bool = False,
        records: bool = False,
        undone: str = _UNRECORDED,
    ) -> T:
        sent, end, pause = False, time.monotonic() + self._patience, 0.0
        lease_ended = False
        while True:
            try:
                self._connected()
            except psycopg.Error as error:
                # The engine was there, and went away during the questions that come before the
                # call itself. Those may be asked again.
                was_there = self._connection is not None and error.sqlstate is None
                self._drop()
                if not sent and (not was_there or time.monotonic() > end):
                    raise OutboxUnavailable(
                        f"{self._name} cannot be reached ({self._said(error)}); {undone}. It is "
                        "tried again at the next use."
                    ) from None
                said = self._said(error)
            else:
                try:
                    if lease_ended:
                        self._begin_lease()
                        lease_ended = False
                    return attempt()
                except _Unsent as error:
                    # No earlier attempt has sent it either: it had the same arguments.
                    raise OutboxError(
                        f"{self._name}: a call was given what cannot be sent ({error}); {undone}."
                    ) from None
                except psycopg.Error as error:
                    if error.sqlstate in _AGAIN:
                        continue
                    if error.sqlstate == _TOO_ISOLATED:
                        self._says_isolation = True
                        continue
                    if error.sqlstate == _TURN_IS_OVER:
                        raise TurnIsOver from None
                    if error.sqlstate == _LEASE_HAS_ENDED:
                        lease_ended = True
                        continue
                    if self._told(error):
                        explained = self.explain(error, undone)
                        if isinstance(explained, OutboxUnavailable):
                            # The next call may come to another engine.
                            self._drop()
                        if not sent:
                            raise explained from None
                        # That this attempt did nothing tells nothing about the one before it.
                        said = f"SQLSTATE {error.sqlstate}"
                    else:
                        # The answer was lost. The same call asks for it, over another connection.
                        said = "its answer was lost"
                        self._drop()
                        if not sent:
                            sent, end = True, time.monotonic() + self._patience
                        self._open_question |= in_time
            if time.monotonic() > end:
                self._open_question = True
                if not records:
                    raise OutboxUnavailable(
                        f"{self._name} went away during a call ({said}), and stayed away. It is "
                        "tried again at the next use."
                    ) from None
                raise OutcomeLost(
                    f"{self._name} went away while it was recording ({said}); whether it has "
                    "recorded that is not known. The next read shows it."
                ) from None
            time.sleep(pause)
            pause = min(0.5, 2 * pause or 0.01)

    def _told(self, error: psycopg.Error) -> bool:
        """Whether the engine has said that it did nothing; or else it is not known."""
        # Where the connection has ended, too, the error may be about that and not about the call.
        # A pooler that has lost the engine says so with an error of its own (class 08).
        assert self._connection is not None  # something was asked over it
        ended = self._connection.closed
        return error.sqlstate is not None and error.sqlstate[:2] != "08" and not ended

    def _begin_lease(self) -> None:
        # In a transaction of its own: it writes the rows of several conversations.
        asked = self._lease.now()
        self._ask("begin_lease", (self.token, self._lease.seconds))
        self.leased(asked, lapsed=True)

    def _ask(
        self, function: str, arguments: Sequence[Any], how: str = "SELECT * FROM"
    ) -> list[Any]:
        connection = self._connection
        assert connection is not None  # `_connected` has seen to it
        connection.deadline = time.monotonic() + self._patience
        places = ", ".join(["%s"] * len(arguments))
        explicitly = connection.transaction() if self._says_isolation else contextlib.nullcontext()
        with explicitly:
            # A call that was sent keeps the connection busy until its answer has come, or is lost.
            before = connection.pgconn.transaction_status
            try:
                cursor = connection.execute(
                    f"{how} cached_session.{function}({places})", arguments, binary=True
                )
            except (psycopg.Error, ValueError) as error:
                said = isinstance(error, psycopg.Error) and error.sqlstate is not None
                if said or connection.pgconn.transaction_status != before:
                    raise
                raise _Unsent(type(error).__name__) from None
            return cursor.fetchall()

    def _connected(self) -> None:
        """Sees to it that there is a connection.

        Raises:
            psycopg.Error: There is none to be had.
        """
        connection = self._connection
        if connection is not None and _cut(connection):
            # If the next call found it out, it would not be known whether that call was done.
            self._drop()
        if self._connection is None:
            said = conninfo_to_dict(self._conninfo)
            if "PGCONNECT_TIMEOUT" not in os.environ:
                said.setdefault("connect_timeout", _CONNECT_TIMEOUT)
            self._connection = _Connection.connect(
                make_conninfo(self._conninfo, **{**_DEFAULTS, **said}),
                autocommit=True,
                # What is prepared is known to one session of the engine.
                prepare_threshold=None,
                row_factory=psycopg.rows.namedtuple_row,
            )
            # Of the transactions for which `_says_isolation`.
            self._connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
            hold_any_text(self._connection)
            self._look_for_loss(self._connection)
        if self._open_question:
            # The engine refuses calls with a lower number from now on: what may still be on its
            # way comes too late.
            self._number += 1
            self._ask("done", (self.token, self._number, []))
            self._open_question = False

    def _look_for_loss(self, connection: _Connection) -> None:
        """Tells of it where this engine does not know what was confirmed to this owner.

        It says what the engine before this one had not yet passed on to it, or lost in a crash.
        """
        if not self._confirmed:
            return
        connection.deadline = time.monotonic() + self._patience
        row = connection.execute(
            "SELECT call FROM cached_session.owners WHERE token = %s", (self.token,)
        ).fetchone()
        if row is None and self._lease.now() - self._confirmed_at > _ROWS_STAY:
            return
        known = 0 if row is None else row[0]
        if known < self._confirmed:
            logger.warning(
                "%s has lost calls that it had confirmed to this process: the last one known to it "
                "is number %d of %d. A standby was promoted that had not got them, or an older "
                "state was restored. What was recorded by them is gone unless it was sent.",
                self._name,
                known,
                self._confirmed,
            )
            # So that it is said once.
            self._confirmed = known

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _prepare(self, *, make: bool) -> None:
        """Looks whether the tables are there, and makes them where there are none."""
        # `make` is for those who append. Others only read as yet.
        undone = _NEITHER if make else _UNREAD
        version = self._try(functools.partial(_version, self), undone=undone)
        if version is None and make:
            version = self._try(self._migrate)
        if version is None:
            why = ", and this role may not make the tables" if make else ""
            raise OutboxError(
                f"{self._name} has no tables of an outbox{why}. Run `cached-session outbox migrate "
                f"{shlex.quote(self._name)}` as a role that may make them."
            )
        if version != VERSION:
            newer = "a newer" if version > VERSION else "an older"
            raise OutboxError(
                f"{self._name} has the tables of {newer} release of cached-session (schema "
                f"{version}, and this release knows {VERSION}); they were left as they are."
            )
        self.version = version

    def _migrate(self) -> int | None:
        """Makes the tables; None: this role may not."""
        connection = self._connection
        assert connection is not None  # `_try` has seen to it
        connection.deadline = time.monotonic() + self._patience
        try:
            with connection.transaction():
                # One at a time. The lock ends with the transaction.
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                # Not by `to_regclass`: it answers out of what this session remembers, and does not
                # see what somebody has made while it waited for the lock.
                there = connection.execute(
                    "SELECT FROM pg_catalog.pg_tables "
                    "WHERE schemaname = 'cached_session' AND tablename = 'schema_version'"
                ).fetchone()
                found = None if there is None else _version(self)
                made = found is None
                if made:
                    connection.execute(schema())
        except psycopg.errors.InsufficientPrivilege:
            return None
        self.made = made
        return VERSION if made else found


def schema() -> str:
    """The statements that make the tables, for a role that may."""
    return importlib.resources.files(__package__).joinpath("schema.sql").read_text("utf-8")


def _version(engine: Engine) -> int | None:
    """The version of the tables, in one round trip; None: there are none."""
    connection = engine._connection
    assert connection is not None  # it was connected before
    try:
        found = connection.execute("SELECT version FROM cached_session.schema_version").fetchone()
    except psycopg.Error as error:
        if error.sqlstate in _NO_TABLES:
            return None
        raise
    return None if found is None else int(found[0])


def _cut(connection: _Connection) -> bool:
    """Whether the engine has ended a connection, or said what nobody has asked for."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
