"""The tables of an outbox, and how they are told from those of other programs."""

from __future__ import annotations

import sqlite3

from cached_session.errors import OutboxError

# "csox". Stands in the file's header, where `file` and other programs see it.
APPLICATION_ID = 0x63736F78
VERSION = 3

_TURNS = (
    # The line of those who want a conversation for a whole run. AUTOINCREMENT, so that
    # who comes later never gets the number of one that was given up.
    """
    CREATE TABLE turns (
        ticket INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversations (number) ON DELETE CASCADE,
        owner TEXT NOT NULL
    )
    """,
    "CREATE INDEX turns_by_conversation ON turns (conversation, ticket)",
)

# AUTOINCREMENT, so that the newest place tells one writing of a window from any other.
_WINDOWS = (
    """
    CREATE TABLE window_items (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversations (number) ON DELETE CASCADE,
        size INTEGER NOT NULL,
        id TEXT NOT NULL,
        data BLOB NOT NULL
    )
    """,
    "CREATE INDEX window_items_by_conversation ON window_items (conversation, seq, size)",
)

# What is kept of conversations is made anew by the next who reads them.
_WINDOWS_ANEW = (
    "DROP TABLE window_items",
    """
    UPDATE conversations SET window_size = 0, window_complete = 0, window_unverified = 0,
        window_written = NULL
    """,
    *_WINDOWS,
)

_TABLES = (
    # AUTOINCREMENT, so that a number once shown never means another record.
    """
    CREATE TABLE conversations (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        base_url TEXT NOT NULL,
        organization TEXT NOT NULL,
        project TEXT NOT NULL,
        credentials TEXT NOT NULL,
        conversation TEXT NOT NULL,
        local TEXT,
        owner TEXT,
        released INTEGER NOT NULL DEFAULT 0,
        claims INTEGER NOT NULL DEFAULT 0,
        doubt BLOB,
        paused TEXT,
        window_complete INTEGER NOT NULL DEFAULT 0,
        window_unverified INTEGER NOT NULL DEFAULT 0,
        window_size INTEGER NOT NULL DEFAULT 0,
        window_written INTEGER,
        UNIQUE (base_url, organization, project, conversation, credentials)
    )
    """,
    """
    CREATE UNIQUE INDEX conversations_by_local
    ON conversations (base_url, organization, project, local, credentials)
    WHERE local IS NOT NULL
    """,
    """
    CREATE INDEX conversations_by_window
    ON conversations (window_written) WHERE window_written IS NOT NULL
    """,
    # AUTOINCREMENT, so that the place of a withdrawn item is not given out again.
    """
    CREATE TABLE items (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversations (number) ON DELETE CASCADE,
        sealed INTEGER NOT NULL DEFAULT 0,
        accepted_at REAL NOT NULL,
        data BLOB NOT NULL
    )
    """,
    "CREATE INDEX items_by_conversation ON items (conversation, seq)",
    # A long backlog has few sealed rows: they are found without a look at the others.
    "CREATE INDEX items_sealed ON items (conversation, seq) WHERE sealed = 1",
    *_WINDOWS,
    *_TURNS,
    # The bytes of all windows together, kept by the database itself: adding
    # them up would be a scan of all conversations at every append.
    "CREATE TABLE totals (window_size INTEGER NOT NULL)",
    "INSERT INTO totals (window_size) VALUES (0)",
    """
    CREATE TRIGGER window_changed AFTER UPDATE OF window_size ON conversations
    BEGIN
        UPDATE totals SET window_size = window_size + NEW.window_size - OLD.window_size;
    END
    """,
    """
    CREATE TRIGGER window_deleted AFTER DELETE ON conversations
    BEGIN
        UPDATE totals SET window_size = window_size - OLD.window_size;
    END
    """,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)


def create(connection: sqlite3.Connection) -> None:
    """Makes the tables, within the caller's transaction."""
    for statement in _TABLES:
        connection.execute(statement)


def prepare(connection: sqlite3.Connection, path: str) -> None:
    """Checks that the file is an outbox, or makes one of an empty file.

    Called inside a transaction that may write, so that of two processes that
    find the file empty, one makes the tables and the other one sees them.

    Raises:
        OutboxError: The file belongs to another program or to a newer release.
        sqlite3.Error: What SQLite says about the file.
    """
    application, version, tables = (
        connection.execute(statement).fetchone()[0]
        for statement in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT COUNT(*) FROM sqlite_master",
        )
    )
    if (application, version, tables) == (0, 0, 0):
        create(connection)
    elif application != APPLICATION_ID:
        raise OutboxError(
            f"{path} is an SQLite database of another program, not an outbox; "
            "it was left as it is. Name another path."
        )
    elif version > VERSION:
        raise OutboxError(
            f"The outbox {path} was made by a newer release of cached-session (schema {version}, "
            f"and this release knows {VERSION}); it was left as it is. Update cached-session."
        )
    elif version < VERSION:
        turns = _TURNS if version < 2 else ()
        for statement in (*turns, *_WINDOWS_ANEW, f"PRAGMA user_version = {VERSION}"):
            connection.execute(statement)
