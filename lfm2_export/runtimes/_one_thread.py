"""One thread for each product inside ExecuTorch's pool.

The pool gives each of its threads heads of attention to compute, and a head's products go through the BLAS that PyTorch
brings along. On x86 that is MKL, which in each of those threads would open a team of OpenMP threads, one for each core:
n² threads for n cores, which wait for each other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch


@cache
def hold_pool_threads() -> None:
    """Let MKL take one thread wherever nobody asked PyTorch for more, as nobody does in the pool's threads.

    The calling thread keeps its number. Without PyTorch's own MKL (ARM64, macOS, Windows) nothing is changed.
    """
    threads = torch.get_num_threads()  # which PyTorch takes from MKL when it is first asked
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    # what mkl_set_num_threads calls, which PyTorch's MKL does not export; the exported one is for the calling thread
    set_default = getattr(ctypes.CDLL(str(library)), "mkl_serv_set_num_threads", None) if library.exists() else None
    if set_default is not None:
        set_default(1)
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the calling thread, which is the pool's first, compute its products alone for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # with the restoration 0.2 µs
    try:
        yield
    finally:
        torch.set_num_threads(before)
