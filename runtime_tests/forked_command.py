"""`lfm2-export` for a shell that runs it many times: each run is a fork of one process that has imported the libraries.

A command imports torch and ExecuTorch for seconds before it does anything; forty commands of the documents would spend
minutes on that. A fork is the command itself, in a process of its own, with the caller's folder, environment and files.

usage: python forked_command.py NAME       serves until its standard input ends
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

# those that take seconds; not onnxruntime, which starts a thread that a fork would lack
_LIBRARIES = (
    "torchao",
    "executorch.exir",
    "executorch.extension.llm.custom_ops.custom_ops",
    "executorch.backends.xnnpack.partition.xnnpack_partitioner",
    "lfm2_export.pipeline",
)

# what a shell finds as `lfm2-export`; it hands over its files and waits for an exit code
_CLIENT = """#!{python} -ES
import array, json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    files = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
    job = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    server.sendmsg([len(job).to_bytes(4, "big")], files)
    server.sendall(job)
    sys.exit(int(server.recv(8) or b"70"))
"""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Path]:
    """The folder of a program `lfm2-export`, to be put first on PATH, while the context lasts."""
    name = f"lfm2-export-{os.getpid()}"
    command = [sys.executable, "-P", __file__, name]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    programs = folder / "bin"
    programs.mkdir()
    _program(programs / "lfm2-export", _CLIENT.format(python=sys.executable, socket=_address(name)))
    _program(programs / "python", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    try:
        yield programs
    finally:
        server.communicate(timeout=30)


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def _address(name: str) -> str:
    """Of a socket that has no file, and so no path that could be too long."""
    return f"\0{name}"


def _serve(name: str) -> list[str]:
    """Answer callers until nobody holds the standard input; in a fork, return its command line."""
    for library in _LIBRARIES:
        importlib.import_module(library)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a library has started a thread"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(_address(name))
    listener.listen()
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    print("ready", flush=True)
    while True:
        caller, _ = listener.accept()
        if (waiter := os.fork()) == 0:  # waits for the command, so that a caller may have several at once
            if (command := os.fork()) == 0:
                return _become(caller)
            caller.sendall(str(os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])).encode())
            os._exit(0)
        caller.close()
        threading.Thread(target=os.waitpid, args=(waiter, 0), daemon=True).start()


def _end_with_the_caller() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock a fork would inherit
    os._exit(0)


def _become(caller: socket.socket) -> list[str]:
    """Take over the caller's files, folder and environment, and return its command line."""
    size, ancillary, _, _ = caller.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    for given, own in zip(array.array("i", ancillary[0][2]), range(3), strict=True):
        os.dup2(given, own)
    job = b""
    while len(job) < int.from_bytes(size, "big"):
        job += caller.recv(1 << 16)
    caller.close()
    words, folder, environment = json.loads(job)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    return list(words)


if __name__ == "__main__":
    arguments = _serve(sys.argv[1])
    from lfm2_export.cli.main import run

    run(arguments)
