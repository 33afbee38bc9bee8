"""What a true LFM2 shape costs on the way to Qualcomm's NPU, and whether it still computes the right numbers there.

    python -m benchmarks.qnn --size 350m --steps 2

Random weights, calibrated on a few random tokens: this is about time, memory, size and arithmetic, not about quality.
The emulator takes seconds for a token, so the check is one prefill chunk and a few decode steps, each from the state
that eager PyTorch has reached: the same inputs on both sides. Results go to benchmarks/results/ as JSON.
"""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from lfm2_export import export, recipes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.files import ANY, write_text
from lfm2_export.model.load import open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.parity.reference import reference
from lfm2_export.progress import Progress
from lfm2_export.quantize.apply import load_quantized
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes import qnn as emulator
from lfm2_export.runtimes.session import Session
from lfm2_export.static_calls import DECODE, PREFILL

RESULTS = Path(__file__).parent / "results"
_CALIBRATION = {"windows": 2, "tokens": 34}  # one chunk of 32 and two single tokens each: random weights need no more


def main(
    size: Annotated[str, typer.Option(help="350m, 700m, 1.2b or 2.6b.")] = "350m",
    recipe: Annotated[str, typer.Option(help="A recipe of the qnn target.")] = "qnn-16a8w",
    steps: Annotated[int, typer.Option(min=1, help="Decode steps to check, after a prefill chunk.")] = 2,
    cache: Annotated[Path, typer.Option(help="Where checkpoint and artifact are kept.")] = Path("out/benchmarks"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Change a recipe value.")] = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the artifact of an earlier run.")] = False,
) -> None:
    """Export the shape, run it on the emulator beside eager PyTorch, print a table and write JSON."""
    folder = cache / size
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{recipe}-{size}-{date.today().isoformat()}.json"
    try:
        result = json.loads(path.read_text()) if check_only else _alone(_exported, folder, recipe, overrides or [])
        write_text(path, json.dumps(result, indent=2) + "\n", True, ANY)  # long work, kept whatever the check does
        result |= _alone(_checked, folder, recipe, steps)
        write_text(path, json.dumps(result, indent=2) + "\n", True, ANY)
    except Lfm2ExportError as error:
        console.err.print(f"[red]error:[/] {error}")
        raise typer.Exit(error.exit_code) from error
    console.out.print(_table(f"{recipe}, {size} shape, random weights", result))
    console.out.print(f"wrote {path}", markup=False)


def _alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The result of a function run in a process of its own, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _exported(folder: Path, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Make the artifact and say what that cost."""
    with console.progress(quiet=False) as progress:
        checkpoint = folder / "checkpoint"
        if not checkpoint.exists():
            init_checkpoint(folder.name, checkpoint, progress=progress)
        changes = ["options.weight_sharing=false", *_calibration(folder, checkpoint, recipe), *overrides]
        clock = _Stages(progress)
        made, _ = export(
            str(checkpoint), recipe, folder / recipe, overrides=changes, force=True, verify=False, progress=clock
        )
    manifest = made.manifest
    assert manifest.npu is not None
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": manifest.versions,
        "npu": manifest.npu.model_dump(),
        "recipe": manifest.recipe,
        "export_seconds": clock.done(),
        "export_cpu_seconds": round(time.process_time(), 1),
        "export_peak_bytes": _peak_bytes(),
        "file_bytes": {name: entry.size for name, entry in manifest.files.items() if name.endswith(".pte")},
        "delegation": {method.name: method.delegation.model_dump() for method in manifest.methods if method.delegation},
    }


def _calibration(folder: Path, checkpoint: Path, recipe: str) -> list[str]:
    """Overrides that calibrate on random tokens, where the recipe calibrates at all: there is no tokenizer."""
    if recipes.load(recipe).calibration is None:
        return []
    vocabulary = open_checkpoint(str(checkpoint)).config.vocab_size
    sequences = np.random.default_rng(0).integers(0, vocabulary, tuple(_CALIBRATION.values()))
    path = folder / "calibration.json"
    write_text(path, json.dumps(sequences.tolist()), True, ANY)
    settings = {"source": "tokens", "file": str(path), **_CALIBRATION}
    return [f"calibration.{name}={value}" for name, value in settings.items()]


def _checked(folder: Path, recipe: str, steps: int) -> dict[str, Any]:
    """One entry per call: how far the emulator's logits and states are from eager's, and how long it took."""
    with console.progress(quiet=False) as progress:
        artifact = open_artifact(folder / recipe)
        manifest = artifact.manifest
        progress("building the eager reference")
        made_by = Recipe.model_validate(manifest.recipe)
        decoder = load_quantized(open_checkpoint(str(folder / "checkpoint")), made_by.quantization, made_by.cache)
        expected = reference(artifact, decoder)
        found = emulator.RUNTIME.open_session(artifact.folder, manifest)
        chunk = next(method.max_tokens for method in manifest.methods if method.name == PREFILL)
        vocabulary = manifest.source.config["vocab_size"]
        tokens = np.random.default_rng(1).integers(0, vocabulary, chunk + steps).tolist()
        calls = [(PREFILL, tokens[:chunk]), *((DECODE, [token]) for token in tokens[chunk:])]
        compared = []
        for number, (method, piece) in enumerate(calls):
            progress(f"call {number + 1} of {len(calls)}: {method}")
            compared.append({"method": method, "tokens": len(piece)} | _one_call(found, expected, piece))
    return {"calls": compared, "check_peak_bytes": _peak_bytes()}


def _one_call(found: Session, expected: Session, tokens: list[int]) -> dict[str, Any]:
    found.restore(expected.state())
    wanted = expected.prefill(tokens)
    start = time.monotonic()
    logits = found.prefill(tokens)
    seconds = time.monotonic() - start
    states, others = found.state().tensors, expected.state().tensors
    return {
        "emulator_seconds": round(seconds, 1),
        "logits_error": float(np.abs(logits - wanted).max() / np.ptp(wanted)),  # of the logits' range
        "state_error": max(float(np.abs(states[name] - others[name]).max() / np.ptp(others[name])) for name in states),
        "same_argmax": bool(logits.argmax() == wanted.argmax()),
    }


class _Stages(Progress):
    """Remembers how long each stage took."""

    def __init__(self, show: Progress) -> None:
        super().__init__(show)
        self._times = [("", time.monotonic())]

    def __call__(self, message: str, work: float = 0.0) -> None:
        self._times.append((message, time.monotonic()))
        super().__call__(message, work)

    def done(self) -> dict[str, float]:
        """Seconds of each stage, in order."""
        ends = [at for _, at in self._times[2:]] + [time.monotonic()]
        return {text: round(end - at, 1) for (text, at), end in zip(self._times[1:], ends, strict=True)}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def _table(title: str, result: dict[str, Any]) -> Table:
    table = Table("", "", title=title, title_justify="left")
    for stage, seconds in result["export_seconds"].items():
        table.add_row(stage, f"{seconds:.0f} s")
    table.add_row("peak memory of the export", f"{result['export_peak_bytes'] / 1e9:.1f} GB")
    for name, size in result["file_bytes"].items():
        table.add_row(name, f"{size / 1e6:.0f} MB")
    for name, report in result["delegation"].items():
        table.add_row(name, f"{report['calls']} delegate calls, {report['delegated']} operators, {report['fallback']}")
    for call in result["calls"]:
        errors = f"logits {call['logits_error']:.1e}, states {call['state_error']:.1e} of their range"
        same = "same" if call["same_argmax"] else "OTHER"
        table.add_row(f"{call['method']}, {call['emulator_seconds']} s", f"{errors}, {same} argmax")
    return table


if __name__ == "__main__":
    typer.run(main)
