"""The campaign: the real client and the real library on a deterministic loop with virtual time."""
