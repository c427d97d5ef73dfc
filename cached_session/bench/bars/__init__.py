"""The bars: what this package has to reach, as ratios taken within one run."""
