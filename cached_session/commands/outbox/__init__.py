"""`cached-session outbox`: what waits in an outbox, and what is to become of it."""
