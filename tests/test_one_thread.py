"""The products inside ExecuTorch's pool take the thread that they are in, and PyTorch elsewhere as many as before."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_ASKED = """
import ctypes, threading, torch
from lfm2_export.runtimes import _one_thread

mkl = ctypes.CDLL(torch.__path__[0] + "/lib/libtorch_cpu.so")
torch.set_num_threads(3)
def others() -> int:
    found = []
    thread = threading.Thread(target=lambda: found.append(mkl.MKL_Get_Max_Threads()))
    thread.start()
    thread.join()
    return found[0]
_one_thread.hold_pool_threads()
after = others(), mkl.MKL_Get_Max_Threads(), torch.get_num_threads()
with _one_thread.one_thread():
    inside = mkl.MKL_Get_Max_Threads(), torch.get_num_threads()
print(*after, *inside, mkl.MKL_Get_Max_Threads(), torch.get_num_threads())
"""


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="PyTorch's own MKL is x86's")
def test_threads_of_the_pool_take_one_and_the_callers_number_stays() -> None:
    free = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", _ASKED], env=free, capture_output=True, text=True, check=True)

    assert [int(each) for each in told.stdout.split()] == [1, 3, 3, 1, 1, 3, 3]  # others'; ours; within; behind
