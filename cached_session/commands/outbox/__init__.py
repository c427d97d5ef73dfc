"""`cached-session outbox`: what waits in an outbox's file, and what is to become of it."""
