"""One conversation: what is done to it, in one order, by whoever uses it."""
