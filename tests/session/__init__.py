"""Tests of CachedSession, through its public names, against the emulator over HTTP."""
