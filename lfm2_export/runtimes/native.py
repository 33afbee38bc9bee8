"""The C++ runner of `runner/`, driving an explicit `.pte` in a process without Python or torch, as an app would."""

from __future__ import annotations

import platform
from pathlib import Path

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import MissingDependencyError
from lfm2_export.runtimes import _runner, executorch
from lfm2_export.runtimes._runner_session import RunnerSession
from lfm2_export.runtimes.runtime import Runtime


class Native(Runtime):
    """`lfm2_runner` on this machine's own processor."""

    name = "native"
    targets = ("xnnpack",)
    taken = "on request"

    def version(self) -> str:
        """Return the version of the executorch that it is built on. MissingDependencyError if it is not built."""
        if platform.machine() != "x86_64":
            raise MissingDependencyError(f"lfm2_runner is built for x86-64 here, not for {platform.machine()}")
        _runner.program("x86_64")
        return executorch.RUNTIME.version()

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> RunnerSession:
        """Start a runner for one conversation. ArtifactError, with its reason, when it refuses the artifact."""
        program = _runner.program("x86_64")
        return RunnerSession(self.name, self.version(), [program], folder, manifest, threads)


RUNTIME = Native()
