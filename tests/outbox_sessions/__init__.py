"""Tests of sessions with an outbox, through the public names."""
