"""How many instructions an ARM64 processor executes for a decode step, counted under qemu: no phone, no timing.

    python -m benchmarks.arm64_instructions                                  # attention alone, by the cache's type
    python -m benchmarks.arm64_instructions --artifact out/my-lfm2-xnnpack-int4   # and a whole step of lfm2_runner

Attention is lfm2_runner's, at LFM2's 350M shape. The counter is a plugin, compiled here, for qemu's dynamically linked
emulator, which comes from Debian 12's package and is unpacked into the cache folder. Needs what `make runner` builds,
`apt-get` and `gcc`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.process import finish
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.files import ANY, write_text
from lfm2_export.progress import Progress
from lfm2_export.runtimes import _runner
from lfm2_export.runtimes.arm64 import PROCESSORS

RESULTS = Path(__file__).parent / "results"
_SOURCES = Path(__file__).parent / "arm64"
_RUNNER = Path(__file__).parents[1] / "runner"
_PACKAGES = ("qemu-user", "libcapstone4", "liburing2", "libnuma1")  # the static emulator can load no plugin
_CACHES = ("float32", "bfloat16", "float16")
_BUILDS = {  # what attention is compiled for, and a processor that has it
    "armv8-a": "cortex-a53",
    "armv8.2-a+fp16": "cortex-a76",
    "armv8.6-a+fp16+bf16": "max",
}
_SHIPPED = "armv8-a"  # what runner/build.sh compiles for
_CONTEXTS = (128, 2048, 8192)
_CALLS = (1, 3)
_LAYERS, _KV_HEADS = 6, 8  # with attention at the 350M shape


def main(
    artifact: Annotated[Path | None, typer.Option(help="An explicit .pte's folder: count a whole step too.")] = None,
    cache: Annotated[Path, typer.Option(help="Where emulator and programs go.")] = Path("out/benchmarks/arm64"),
) -> None:
    """Count and write the table."""
    try:
        with console.progress(quiet=False) as progress:
            page = _page(Counter(cache, progress), artifact, progress)
            path = RESULTS / f"arm64-instructions-{date.today().isoformat()}.md"
            write_text(path, page, True, ANY)
    except Lfm2ExportError as error:
        console.err.print(f"error: {error}", markup=False)
        raise typer.Exit(error.exit_code) from error
    console.out.print(f"wrote {path}", markup=False)


class Counter:
    """An emulator that counts, and the programs that it runs, made once."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        """MissingDependencyError without lfm2_runner for ARM64, LoweringError when something cannot be made."""
        self.runner, self._folder = _runner.program("aarch64"), folder.absolute()
        self._system = _runner.folder() / "debian"
        self._folder.mkdir(parents=True, exist_ok=True)
        if not self._emulator.is_file():
            progress("unpacking qemu")
            finish(["apt-get", "download", *_PACKAGES], self._folder)
            for package in self._folder.glob("*.deb"):
                finish(["dpkg-deb", "-x", str(package), str(self._folder)])
        progress("compiling")
        source = _SOURCES / "instructions.c"
        finish(["gcc", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", str(source), "-o", str(self._plugin)])
        for build in _BUILDS:
            self._compile(build)

    @property
    def _emulator(self) -> Path:
        return self._folder / "usr/bin/qemu-aarch64"

    @property
    def _plugin(self) -> Path:
        return self._folder / "instructions.so"

    def attention(self, build: str) -> Path:
        """Return the program that computes attention alone."""
        return self._folder / f"attend-{build}"

    def __call__(self, processor: str, words: Sequence[str | Path]) -> int:
        """Return the instructions that a program executes to its end. LoweringError when it fails."""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "instructions"
            libraries = f"LD_LIBRARY_PATH={self._folder / 'usr/lib/x86_64-linux-gnu'}"
            emulated = [self._emulator, "-cpu", PROCESSORS[processor][0], "-plugin", f"{self._plugin},out={out}"]
            emulated += ["-L", self._system / "usr/aarch64-linux-gnu"]
            finish(["env", libraries, *map(str, emulated), *map(str, words)])
            return int(out.read_text())

    def _compile(self, build: str) -> None:
        wheel = _runner.folder() / "aarch64-wheel/executorch/include"
        words = [str(self._system / "usr/bin/aarch64-linux-gnu-g++"), f"--sysroot={self._system}", "-std=c++17", "-O3"]
        words += [f"-march={build}", "-static", "-DC10_USING_CUSTOM_GENERATED_MACROS", f"-I{_RUNNER}"]
        words += ["-isystem", str(wheel), "-isystem", str(wheel / "executorch/runtime/core/portable_type/c10")]
        words += [str(_SOURCES / "attend.cpp"), str(_RUNNER / "attention.cpp"), "-o", str(self.attention(build))]
        own = self._system / "usr/lib/x86_64-linux-gnu"  # the cross binutils' own libraries
        finish(["env", f"LD_LIBRARY_PATH={own}{os.pathsep}{os.environ.get('LD_LIBRARY_PATH', '')}", *words])


def _page(count: Counter, artifact: Path | None, progress: Progress) -> str:
    lines = [
        f"Millions of instructions for one token's attention at the 350M shape ({_LAYERS} layers of {_KV_HEADS} KV "
        "heads, two query heads each, width 64), lfm2_runner's, under qemu.",
        "",
        "| compiled for | emulated | cache | " + " | ".join(f"@{context}" for context in _CONTEXTS) + " |",
        "|---" * (3 + len(_CONTEXTS)) + "|",
    ]
    places = [(_SHIPPED, each) for each in PROCESSORS] + [place for place in _BUILDS.items() if place[0] != _SHIPPED]
    for build, processor in places:
        for cache in _CACHES:
            progress(f"attention: {build}, {processor}, {cache}")
            found = [_attention(count, build, processor, cache, context) for context in _CONTEXTS]
            lines.append(
                f"| {build} | {processor} | {cache} | " + " | ".join(f"{each / 1e6:.1f}" for each in found) + " |"
            )
    if artifact is not None:
        lines += ["", f"A whole decode step of {artifact.name}, at the beginning of a conversation, one thread:", ""]
        lines += ["| emulated | int8 products by | millions of instructions |", "|---|---|---|"]
        for processor, (_, kernels) in PROCESSORS.items():
            progress(f"whole step: {processor}")
            lines.append(f"| {processor} | {kernels} | {_step(count, processor, artifact) / 1e6:.0f} |")
    return "\n".join(lines) + "\n"


def _attention(count: Counter, build: str, processor: str, cache: str, context: int) -> float:
    few, more = (count(processor, [count.attention(build), cache, str(context), str(calls)]) for calls in _CALLS)
    return (more - few) / (_CALLS[1] - _CALLS[0]) * _LAYERS * _KV_HEADS


def _step(count: Counter, processor: str, artifact: Path) -> float:
    options = ["--tokens", "1,2,3", "--greedy", "--stop", "none", "--threads", "1", "--max-new"]
    few, more = (count(processor, [count.runner, "generate", artifact, *options, str(n)]) for n in _CALLS)
    return (more - few) / (_CALLS[1] - _CALLS[0])


if __name__ == "__main__":
    typer.run(main)
