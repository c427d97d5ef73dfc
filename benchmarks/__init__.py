"""The guard of this repository; the benchmarks themselves are in `cached_session.bench`."""
