"""How often somebody looks at what nothing tells of."""

from __future__ import annotations

LOOK_AFTER = 1.0
"""Seconds: nothing tells when an event loop is stopped, or what another process does to a file."""
