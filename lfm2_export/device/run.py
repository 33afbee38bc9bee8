"""Prove an artifact on a phone: push it with ExecuTorch's runner, run the calls there, compare what comes back.

The runner is `examples/qualcomm/executor_runner` of ExecuTorch, or one that takes the same options. It is the user's
own build, as are the libraries beside it; nothing is downloaded.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import MethodSpec
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.device import calls
from lfm2_export.device.adb import Phone, quoted
from lfm2_export.device.calls import Batch
from lfm2_export.errors import DeviceError, UsageError
from lfm2_export.model.load import load_decoder
from lfm2_export.parity.cases import random_ids
from lfm2_export.parity.lowering import LoweringFigures
from lfm2_export.parity.metrics import clear_top1, relative_error, signal_to_noise, worst
from lfm2_export.parity.report import ParityReport, RuntimeReport, judge
from lfm2_export.parity.text import evaluation_text
from lfm2_export.quantize.apply import quantize
from lfm2_export.recipes import Recipe
from lfm2_export.runtimes.eager import EagerSession

Stage = Callable[[str], None]
_PARENT = "/data/local/tmp"  # where Android lets the shell user execute files


def prove_on_device(
    artifact: Artifact,
    checkpoint: Checkpoint,
    phone: Phone,
    runner: Path,
    libraries: Sequence[Path] = (),
    steps: int = 8,
    timeout: float = 600,
    keep: bool = False,
    stage: Stage = lambda _: None,
) -> ParityReport:
    """Logits of the phone against the same quantized model in eager PyTorch, by the recipe's lowering gates.

    `libraries` lie beside the runner and are found through LD_LIBRARY_PATH and ADSP_LIBRARY_PATH. `timeout`, in
    seconds, is for one run of the runner. The folder on the phone is removed unless `keep`.
    Raises UsageError and DeviceError.
    """
    manifest = artifact.manifest
    files = [artifact.folder / name for name in sorted({method.file for method in manifest.methods})]
    files += _existing([runner, *libraries])
    _check_names(files)
    recipe = Recipe.model_validate(manifest.recipe)
    stage("the reference: eager PyTorch on this machine")
    tokenizer = ChatTokenizer.load(artifact.folder, checkpoint.config)
    text = evaluation_text(checkpoint.config, tokenizer, manifest.window, 200)
    tokens = [token for window in text.windows for token in window]
    reference = EagerSession(quantize(load_decoder(checkpoint), recipe.quantization, recipe.cache), manifest.window)
    batches = calls.batches(manifest, reference, tokens or random_ids(checkpoint.config, 64, seed=1), steps)
    report = RuntimeReport(runtime=f"phone {phone.serial}", version=phone.describe())
    with tempfile.TemporaryDirectory(prefix="lfm2-export-") as scratch:
        outputs = _on_phone(phone, files, runner.name, batches, Path(scratch), timeout, keep, stage)
    report.lowering = _compare(batches, outputs, recipe.gates.lowering.max_error)
    judge(report, recipe.gates, None, checkpoint.random_weights)
    return ParityReport(
        artifact=artifact.folder.name,
        recipe=recipe.name,
        source=manifest.source.name,
        weights_sha256=manifest.source.weights_sha256,
        random_weights=checkpoint.random_weights,
        text=text.kind,
        delegation=[method.delegation for method in manifest.methods if method.delegation],
        size_bytes=sum(entry.size for entry in manifest.files.values()),
        versions=manifest.versions,
        runtimes=[report],
    )


def _on_phone(
    phone: Phone,
    files: list[Path],
    runner: str,
    batches: list[Batch],
    scratch: Path,
    timeout: float,
    keep: bool,
    stage: Stage,
) -> list[list[np.ndarray]]:
    """Logits of every call of every batch."""
    given = scratch / calls.FOLDER
    given.mkdir()
    for number, batch in enumerate(batches):
        calls.write(batch, given, f"list_{number}.txt")
    folder = f"{_PARENT}/lfm2-export-{secrets.token_hex(4)}"
    try:
        phone.shell(f"mkdir -p {folder}", timeout=60)
        stage(f"{phone.serial}: copying {sum(_size(path) for path in [*files, given]) / 1e6:.0f} MB to {folder}")
        phone.push([*files, given], folder)
        outputs = []
        for number, batch in enumerate(batches):
            stage(f"{phone.serial}: {batch.method.name}, {len(batch.calls)} calls of {batch.rows} tokens")
            model = next(path for path in files if path.name == batch.method.file)
            phone.shell(_command(folder, runner, batch, number, method_index(model, batch.method.name)), timeout)
            phone.pull(f"{folder}/outputs_{number}", scratch)
            outputs.append([_logits(scratch / f"outputs_{number}", i, batch.method) for i in range(len(batch.calls))])
    except DeviceError:
        with suppress(DeviceError):  # the phone may have gone away: the first error says why
            _remove(phone, folder, keep)
        raise
    _remove(phone, folder, keep)
    return outputs


def _command(folder: str, runner: str, batch: Batch, number: int, index: int) -> str:
    """As ExecuTorch's own `SimpleADB` starts it: from the folder that holds the libraries."""
    listed = f"{calls.FOLDER}/list_{number}.txt"
    options = {
        "model_path": batch.method.file,
        "method_index": str(index),
        "input_list_path": listed,
        "output_folder_path": f"outputs_{number}",
    }
    if any(isinstance(size, str) for spec in batch.method.inputs for size in spec.shape):
        options |= {"input_shape_path": f"{listed}.in", "output_shape_path": f"{listed}.out"}
    line = " ".join(f"--{name}={quoted(value)}" for name, value in options.items())
    program = quoted(runner)
    return (
        f"cd {folder} && mkdir -p outputs_{number} && chmod 755 {program} "
        f"&& export LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. && ./{program} {line}"
    )


def method_index(path: Path, name: str) -> int:
    """A method's place in a `.pte`, which is how the runner is told of it; the file's order is the exporter's own."""
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header

    with path.open("rb") as file:
        header = _get_extended_header(file.read(_ExtendedHeader.NUM_HEAD_BYTES))
        file.seek(0)
        program = _flatbuffer_to_program(file.read(header.program_size if header else -1))
    return [plan.name for plan in program.execution_plan].index(name)


def _logits(folder: Path, call: int, method: MethodSpec) -> np.ndarray:
    """`[vocab]` of one call; the runner writes `output_<line>_<output>.raw`."""
    number, spec = next((i, spec) for i, spec in enumerate(method.outputs) if spec.name == "logits")
    path = folder / f"output_{call}_{number}.raw"
    if not path.is_file():
        raise DeviceError(f"the runner left no {path.name}; is it ExecuTorch's qnn_executor_runner, or one like it?")
    wanted = int(np.prod([int(size) for size in spec.shape])) * np.dtype(spec.dtype).itemsize
    size = path.stat().st_size
    if size != wanted:
        raise DeviceError(f"the runner's {path.name} has {size} bytes, {wanted} were expected; is the storage full?")
    return np.fromfile(path, dtype=spec.dtype).astype(np.float32)


def _compare(batches: list[Batch], outputs: list[list[np.ndarray]], tolerance: float) -> LoweringFigures:
    """Every call starts from the reference's own state, so each error is that of a single step."""
    asked = [call for batch in batches for call in batch.calls]
    ours, theirs = np.stack([logits for batch in outputs for logits in batch]), np.stack([c.logits for c in asked])
    errors = [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    agreeing, counted = clear_top1(ours, theirs, tolerance)
    return LoweringFigures(
        max_error=worst(errors),
        logits_error=worst(errors),
        state_error=None,
        mean_absolute_error=float(np.abs(ours - theirs).mean()),
        snr_db=signal_to_noise(ours, theirs),
        top1=agreeing / counted if counted else None,
        median_step=float(np.median(errors)),
        worst_case=asked[int(np.argmax(errors))].name,
    )


def _existing(paths: Sequence[Path]) -> list[Path]:
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
    return list(paths)


def _check_names(files: Sequence[Path]) -> None:
    names = [path.name for path in files] + [calls.FOLDER]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"two files named {twice[0]} cannot lie in one folder of the phone")


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*")) if path.is_dir() else path.stat().st_size


def _remove(phone: Phone, folder: str, keep: bool) -> None:
    if not keep:
        phone.shell(f"rm -rf {folder}", timeout=60)
