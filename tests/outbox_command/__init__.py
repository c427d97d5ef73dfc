"""Tests of the command `cached-session outbox`, on real files, with a real server."""
