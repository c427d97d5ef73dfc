"""The bars: what this package has to reach, as ratios taken within one run.

A bar is about the code, so the quick ones of several repeats stand for each
side. The others say what else the machine did meanwhile. What a user sees of a
busy machine is in the benchmarks' percentiles.
"""
