"""Unit and property tests of the pure modules."""
