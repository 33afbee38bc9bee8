"""What this machine offers: the facts that `doctor` and a benchmark show."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection

# what a kernel computes in → the instruction sets made for it on x86-64 and ARM64, as py-cpuinfo names them
_ARITHMETIC = {
    "int8 products": ("amx_int8", "avx512_vnni", "avx_vnni", "sme", "i8mm", "asimddp"),
    "bf16 arithmetic": ("amx_bf16", "avx512_bf16", "bf16"),
    "fp16 arithmetic": ("avx512_fp16", "asimdhp"),
}
_VECTORS = ("avx2", "fma", "f16c", "avx512f", "asimd", "sve", "sve2")


def machine() -> dict[str, str]:
    """Processor, cores, memory, its instruction sets for vectors, and what it has special arithmetic for."""
    from cpuinfo import get_cpu_info

    info = get_cpu_info()
    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{info.get('brand_raw', 'unknown')}, {os.cpu_count()} cores",
        **arithmetic(info.get("flags", ())),
        "memory": _memory(),
    }


def arithmetic(flags: Collection[str]) -> dict[str, str]:
    """Return the instruction sets among a processor's flags, and which of them serve int8, bf16 and fp16."""
    special = {name: [flag for flag in wanted if flag in flags] for name, wanted in _ARITHMETIC.items()}
    every = [flag for flag in _VECTORS if flag in flags] + [flag for found in special.values() for flag in found]
    return {
        "vector extensions": " ".join(every) or "none of those looked for",
        **{name: " ".join(found) or "none" for name, found in special.items()},
    }


def _memory() -> str:
    if sys.platform == "win32":  # sysconf is POSIX's
        return "not asked for on Windows"
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
