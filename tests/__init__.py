"""Tests of cached_session."""
