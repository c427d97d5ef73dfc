"""OpenTelemetry's metrics and spans of sessions, against the emulator over HTTP."""
