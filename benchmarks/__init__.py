"""The benchmarks: `python -m benchmarks`. No part of the package that is installed."""
