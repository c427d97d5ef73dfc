"""`python -m cached_session`: the command line."""

import sys

from cached_session.commands.cli import main

sys.exit(main())
