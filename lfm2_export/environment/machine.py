"""What this machine offers: the facts that `doctor` and a benchmark show."""

from __future__ import annotations

import os
import platform


def machine() -> dict[str, str]:
    """Processor, cores, memory and the vector extensions that the int8 and int4 kernels use."""
    from cpuinfo import get_cpu_info

    info = get_cpu_info()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm", "sve", "sme")
    found = [flag for flag in wanted if flag in info.get("flags", ())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "processor": f"{info.get('brand_raw', 'unknown')}, {os.cpu_count()} cores",
        "vector extensions": " ".join(found) or "none of those looked for",
        "memory": f"{memory / 2**30:.0f} GiB",
    }
