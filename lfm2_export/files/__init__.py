"""Files as this tool reads and writes them: outputs that are whole or absent, and nobody else's replaced."""

from lfm2_export.files.places import cache_root, sha256
from lfm2_export.files.replacing import Kind, check_free, check_free_file
from lfm2_export.files.staging import put_in_place, staged_folder, write_bytes, write_text

__all__ = [
    "Kind",
    "cache_root",
    "check_free",
    "check_free_file",
    "put_in_place",
    "sha256",
    "staged_folder",
    "write_bytes",
    "write_text",
]
