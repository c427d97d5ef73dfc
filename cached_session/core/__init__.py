"""Decisions without side effects: no asyncio, no network, no clock, nothing third-party."""
