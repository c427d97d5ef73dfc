"""Tests of the outboxes, through what the rest of the package uses of them."""
