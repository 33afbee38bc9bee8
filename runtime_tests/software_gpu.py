"""The GPU in software that `webgpu/setup.sh` has unpacked, for this process and those it starts."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / ".venv" / "lavapipe"


@contextmanager
def software_gpu() -> Iterator[None]:
    """Let Vulkan find it meanwhile; the tests are skipped, or in CI fail, where it was not set up."""
    folder = FOLDER.resolve()
    if not (folder / "lavapipe.json").is_file():
        reason = "Mesa's software Vulkan is not set up; make .venv/installed-webgpu"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    for name in ("libvulkan_lvp.so", "libvulkan.so.1"):
        _load(folder / "lib", name)
    libraries = os.environ.get("LD_LIBRARY_PATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VK_ICD_FILENAMES", str(folder / "lavapipe.json"))
        patch.setenv("MESA_SHADER_CACHE_DIR", str(folder / "shaders"))
        patch.setenv("LD_LIBRARY_PATH", f"{folder / 'lib'}:{libraries}" if libraries else str(folder / "lib"))
        yield


def _load(folder: Path, name: str) -> None:
    """A library after those it is linked with: this process's search path cannot be changed any more."""
    while True:
        try:
            ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
            return
        except OSError as error:
            missing = str(error).partition(":")[0]
            if missing == name or not (folder / missing).exists():
                raise
            _load(folder, missing)
