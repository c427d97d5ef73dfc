"""The log in a file: SQLite."""
