"""Real processes with one outbox file, killed at random moments, before a real server."""
