"""An outbox in a PostgreSQL database, which the workers of a fleet share."""
