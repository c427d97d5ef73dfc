"""The demo: one agent loop on the SDK's session and on this package's, side by side."""
