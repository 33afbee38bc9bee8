"""Files as this tool reads and writes them: outputs that are whole or absent, and nobody else's replaced."""

from lfm2_export.files.hidden import scratch_folder, sweep
from lfm2_export.files.places import cache_root, sha256
from lfm2_export.files.replacing import ANY, FileKind, FolderKind, check_free, check_free_file, marked
from lfm2_export.files.room import Need, check_room
from lfm2_export.files.staging import resumed_folder, staged_file, staged_folder, write_bytes, write_text

__all__ = [
    "ANY",
    "FileKind",
    "FolderKind",
    "Need",
    "cache_root",
    "check_free",
    "check_free_file",
    "check_room",
    "marked",
    "resumed_folder",
    "scratch_folder",
    "sha256",
    "staged_file",
    "staged_folder",
    "sweep",
    "write_bytes",
    "write_text",
]
