"""The unpacked folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from small_bundles import unpacked

from hostile_bundles.spoil import HOSTILE, Files, Spoil


def folder_with(change: Callable[[Path], object]) -> Spoil:
    def spoil(files: Files, place: Path) -> Path:
        change(folder := unpacked(files, place / "bundle"))
        return folder

    return spoil


def link_out(folder: Path) -> None:
    (folder.parent / "outside").write_bytes((folder / "LICENSE").read_bytes())
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(folder.parent / "outside")


HOSTILE |= {
    "folder: a link to the same bytes": (folder_with(link_out), "symbolic link"),
    "folder: a link to a folder": (folder_with(lambda f: (f / "more").symlink_to("/etc")), "symbolic link"),
    "folder: a link in a circle": (folder_with(lambda f: (f / "more").symlink_to(f / "more")), "symbolic link"),
    "folder: a pipe": (folder_with(lambda f: os.mkfifo(f / "pipe")), "neither a file nor a folder"),
    "folder: a pipe for the model": (
        folder_with(lambda f: (f / "model.pte").unlink() or os.mkfifo(f / "model.pte")),
        "neither a file nor a folder",
    ),
    "folder: a file nobody lists": (folder_with(lambda f: (f / "extra").write_bytes(b"")), "nobody vouches"),
    "folder: a file below nobody lists": (
        folder_with(lambda f: (f / "a").mkdir() or (f / "a" / "b").write_bytes(b"")),
        "nobody vouches",
    ),
    "folder: a file missing": (folder_with(lambda f: (f / "LICENSE").unlink()), "listed but missing"),
    "folder: a file cut": (folder_with(lambda f: (f / "LICENSE").write_bytes(b"LFM")), "3 bytes"),
    "folder: a file altered": (folder_with(lambda f: (f / "LICENSE").write_bytes(b"lfm Open License\n")), "SHA-256"),
    "folder: a name that is not text": (
        folder_with(lambda f: os.close(os.open(os.fsencode(f) + b"/\xff", os.O_CREAT))),
        "is not text",
    ),
}  # fmt: skip
