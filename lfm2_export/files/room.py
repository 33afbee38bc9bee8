"""Whether there is room on the disk, asked before any work is done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from lfm2_export.errors import UsageError


class Need(NamedTuple):
    """Bytes that will be written at a place, which need not exist yet."""

    place: Path
    size: int
    what: str  # in the plural, for the message


def check_room(*needs: Need) -> None:
    """Refuse what a disk has too little room for. Needs on one disk add up. Raises UsageError."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.place).stat().st_dev, []).append(need)
    for there in disks.values():
        size, free = sum(need.size for need in there), shutil.disk_usage(_existing(there[0].place)).free
        if size > free:
            what = " and ".join(need.what for need in there)
            raise UsageError(
                f"{there[0].place}: {what}, at least {_spelled(size)}, do not fit the {_spelled(free)} that are free "
                "there; make room, or choose a place on another disk"
            )


def _spelled(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def _existing(place: Path) -> Path:
    return next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
