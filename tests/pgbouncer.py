"""A pgbouncer that tests start before a PostgreSQL server of their own, in transaction mode."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.postgres import Server
from tests.servers import accepts, eventually, free_port

# Two connections for all: what one call finds in a session of the engine, another one has left.
_SETTINGS = """\
[databases]
* = host=127.0.0.1 port={server} user=owner
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_client_conn = 500
server_lifetime = 2
logfile = {directory}/log
"""


def program() -> Path | None:
    """Where pgbouncer is; None: nowhere."""
    # Debian keeps it where only root looks.
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    return None if found is None else Path(found)


def missing() -> str | None:
    """Why there is none, as a line that nobody overlooks; None: there is one."""
    return "NO PGBOUNCER IS TESTED: it was not found" if program() is None else None


class Pooler:
    """One pgbouncer, on a port and in a folder of its own.

    Attributes:
        port: Its TCP port.
    """

    def __init__(self, server: Server, directory: Path) -> None:
        self.port = free_port()
        self._server = server
        self._settings = directory / "pgbouncer.ini"
        self._settings.write_text(
            _SETTINGS.format(server=server.port, port=self.port, directory=directory)
        )
        # It refuses to run as root.
        self._as: dict[str, object] = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, address: str) -> str:
        """The address of a database of the server, by way of it."""
        return psycopg.conninfo.make_conninfo(address, port=self.port)

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        found = program()
        assert found is not None  # whoever has none is skipped
        self._process = subprocess.Popen(
            [found, "-q", self._settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._settings.parent,
            **self._as,  # type: ignore[call-overload]
        )
        eventually(lambda: accepts(self.port))

    def stop(self) -> None:
        """Ends it at once, with whatever is on its way."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait(60)


@contextlib.contextmanager
def pooler(server: Server) -> Iterator[Pooler]:
    """A pgbouncer that runs; its files go at the end."""
    directory = Path(tempfile.mkdtemp(prefix="cached-session-pgbouncer-"))
    directory.chmod(0o755)
    try:
        made = Pooler(server, directory)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(directory)
