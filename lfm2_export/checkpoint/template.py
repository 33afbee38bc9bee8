"""Messages → prompt through a checkpoint's chat template, which is rendered by a process with limits of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from lfm2_export.errors import CheckpointError, one_line

_PROGRAM = Path(__file__).with_name("template_process.py")
_SECONDS = 5  # of processor time for one prompt; a real template takes a thousandth
_MEMORY = 1 << 30
_LONGEST = 4 << 20  # characters of one prompt


class ChatTemplate:
    """One compiled template. The process behind it starts when needed and ends with this object."""

    def __init__(self, source: str, where: str) -> None:
        """`where` names the file in errors. CheckpointError when it does not compile or cannot render a greeting."""
        self._source = source
        self._where = where
        self._process: subprocess.Popen[bytes] | None = None
        reply = self._ask({"messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": True})
        if "error" in reply and not reply["refused"]:  # it may well want a conversation of another kind
            raise self._failure(reply)

    def render(self, values: dict[str, Any]) -> str:
        """The prompt for these variables, plain JSON values. CheckpointError when the template refuses or fails."""
        reply = self._ask(values)
        if "error" in reply:
            raise self._failure(reply)
        return str(reply["text"])

    def _ask(self, values: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
        return self._exchange(self._process, values)

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: this folder's modules must not stand in for the standard library's
        command = [sys.executable, "-P", str(_PROGRAM), str(_SECONDS), str(_MEMORY), str(_LONGEST)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal is for the chat, not for this
        )
        weakref.finalize(self, _end, process)
        reply = self._exchange(process, {"source": self._source})
        if "error" in reply:
            raise self._failure(reply)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], document: dict[str, Any]) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(document).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # EPIPE, on Windows EINVAL
            line = b""
        if not line:
            self._process = None
            _end(process)
            raise CheckpointError(
                f"{self._where}: the chat template was stopped (status {process.returncode}): "
                f"it needs more than {_SECONDS} s or {_MEMORY >> 20} MiB"
            )
        return dict(json.loads(line))

    def _failure(self, reply: dict[str, Any]) -> CheckpointError:
        kind = "refuses this conversation" if reply["refused"] else "fails"
        reason = one_line(reply["error"] or "no reason given")
        return CheckpointError(f"{self._where}: the chat template {kind}: {reason}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # what was not read any more
                continue
