"""Campaigns over real sockets: random operations, all fault kinds, and the account of them."""
