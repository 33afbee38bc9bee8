"""The `lfm2-export` command, run within the test's own process."""

from __future__ import annotations

import pytest

from lfm2_export.cli.main import run


def code_of(*arguments: str) -> int:
    """The exit code that the command leaves with; what it printed is pytest's to show."""
    with pytest.raises(SystemExit) as left:
        run(list(arguments))
    return int(left.value.code or 0)
