"""What the library does under every kind of fault, one fault at a time."""

import pytest

# So that their assertions say what differed.
pytest.register_assert_rewrite("tests.faults.line", "tests.faults.trial")
