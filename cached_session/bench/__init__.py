"""The benchmarks: `cached-session bench`.

They are part of the package, so that a user with an installed wheel can measure
a server of their own. What is held against thresholds is not: the guard of this
repository is `benchmarks/guard.py`.
"""
