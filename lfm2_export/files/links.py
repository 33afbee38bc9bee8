"""Whether the files of a checkpoint may be links to elsewhere: no, unless the user says that they are meant.

Kept in the environment, since child processes read the checkpoint as well.
"""

from __future__ import annotations

import os

_VARIABLE = "LFM2_EXPORT_FOLLOW_LINKS"


def follow() -> None:
    """Follow such links from now on, in this process and those it starts."""
    os.environ[_VARIABLE] = "1"


def followed() -> bool:
    """Return whether they are followed."""
    return os.environ.get(_VARIABLE) == "1"
