"""The names of conversations that the server has not created yet."""

from __future__ import annotations

# What such a name begins with. The service's ids begin with "conv_".
LOCAL = "local-"
