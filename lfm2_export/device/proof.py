"""Prove an artifact on a phone: push it with ExecuTorch's runner, run the calls there, compare what comes back.

The runner is `examples/qualcomm/executor_runner` of ExecuTorch, or one that takes the same options. It is the user's
own build, as are the libraries beside it; nothing is downloaded.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from lfm2_export.artifact.folder import Artifact
from lfm2_export.artifact.manifest import MethodSpec, TensorSpec
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.device import calls
from lfm2_export.device.adb import Phone, quoted
from lfm2_export.device.calls import Batch, Call, valid
from lfm2_export.device.reference import batches
from lfm2_export.errors import DeviceError, UsageError
from lfm2_export.evaluate.metrics import apart, relative_error, worst
from lfm2_export.evaluate.text import evaluation_text, random_ids
from lfm2_export.files import scratch_folder
from lfm2_export.parity.lowering import LoweringFigures
from lfm2_export.parity.report import ParityReport, RuntimeReport, judge
from lfm2_export.progress import Progress, silent
from lfm2_export.recipes import Recipe

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
    progress: Progress = silent,
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
    progress("the reference: eager PyTorch on this machine")
    tokenizer = ChatTokenizer.load(artifact.folder, checkpoint.config)
    text = evaluation_text(checkpoint.config, tokenizer, manifest.window, 200)
    tokens = [token for tokens in text.sequences for token in tokens]
    asked = batches(artifact, checkpoint, recipe, tokens or random_ids(checkpoint.config, 64, seed=1), steps)
    report = RuntimeReport(runtime=f"phone {phone.serial}", version=phone.describe())
    with scratch_folder() as scratch:
        outputs = _on_phone(phone, files, runner.name, asked, scratch, timeout, keep, progress)
    made = [call for batch in asked for call in batch.calls]
    report.lowering = _compare(made, outputs, recipe.gates.lowering.max_error)
    judge(report, recipe.judged_by, None, checkpoint.random_weights)
    return ParityReport(
        artifact=artifact.folder.name,
        recipe=recipe.name,
        source=manifest.source.name,
        weights_sha256=manifest.source.weights_sha256,
        random_weights=checkpoint.random_weights,
        text=text.kind,
        delegation=[method.delegation for method in manifest.methods if method.delegation],
        size_bytes=manifest.shipped_bytes,
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
    progress: Progress,
) -> list[dict[str, np.ndarray]]:
    """The outputs of every call of every batch, by name."""
    given = scratch / calls.FOLDER
    given.mkdir()
    for number, batch in enumerate(batches):
        calls.write(batch, given, f"list_{number}.txt")
    folder = f"{_PARENT}/lfm2-export-{secrets.token_hex(4)}"
    try:
        phone.shell(f"mkdir -p {folder}", timeout=60)
        progress(f"{phone.serial}: copying {sum(_size(path) for path in [*files, given]) / 1e6:.0f} MB to {folder}")
        phone.push([*files, given], folder)
        outputs: list[dict[str, np.ndarray]] = []
        for number, batch in enumerate(batches):
            progress(f"{phone.serial}: {batch.method.name}, {len(batch.calls)} calls of {batch.rows} tokens")
            model = next(path for path in files if path.name == batch.method.file)
            phone.shell(_command(folder, runner, batch, number, method_names(model).index(batch.method.name)), timeout)
            phone.pull(f"{folder}/outputs_{number}", scratch)
            results = scratch / f"outputs_{number}"
            outputs += [_outputs(results, i, call, batch.method) for i, call in enumerate(batch.calls)]
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


def method_names(path: Path) -> list[str]:
    """The methods of a `.pte` in the file's own order, by which the runner is told which one to execute."""
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header

    with path.open("rb") as file:
        header = _get_extended_header(file.read(_ExtendedHeader.NUM_HEAD_BYTES))
        file.seek(0)
        program = _flatbuffer_to_program(file.read(header.program_size if header else -1))
    return [plan.name for plan in program.execution_plan]


def _outputs(folder: Path, number: int, call: Call, method: MethodSpec) -> dict[str, np.ndarray]:
    """What the reference has too of one call's outputs, by name; the runner writes `output_<line>_<output>.raw`."""
    return {
        spec.name: _read(folder / f"output_{number}_{index}.raw", spec)
        for index, spec in enumerate(method.outputs)
        if spec.name in call.expected
    }


def _read(path: Path, spec: TensorSpec) -> np.ndarray:
    if not path.is_file():
        raise DeviceError(f"the runner left no {path.name}; is it ExecuTorch's qnn_executor_runner, or one like it?")
    shape = [int(size) for size in spec.shape]
    wanted = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
    size = path.stat().st_size
    if size != wanted:
        raise DeviceError(f"the runner's {path.name} has {size} bytes, {wanted} were expected; is the storage full?")
    return np.fromfile(path, dtype=spec.dtype).reshape(shape)


def _compare(calls: list[Call], outputs: list[dict[str, np.ndarray]], tolerance: float) -> LoweringFigures:
    """Every call starts from the reference's own state, so each error is that of a single step."""
    errors = []
    for call, found in zip(calls, outputs, strict=True):
        pairs = {n: (valid(n, found[n], call.tokens), valid(n, call.expected[n], call.tokens)) for n in found}
        errors.append({name: relative_error(ours, theirs) for name, (ours, theirs) in pairs.items()})
    ours = np.stack([found["logits"].reshape(-1) for found in outputs])
    theirs = np.stack([call.expected["logits"].reshape(-1) for call in calls])
    states = [error for each in errors for name, error in each.items() if name != "logits"]
    logits = apart(ours, theirs)
    agreeing, counted = logits.clear_top1(tolerance)
    steps = [worst(list(each.values())) for each in errors]
    return LoweringFigures(
        max_error=worst(steps),
        logits_error=worst([each["logits"] for each in errors]),
        state_error=worst(states) if states else None,
        mean_absolute_error=logits.mean_absolute_error,
        rms_error=logits.rms_error,
        top1=agreeing / counted if counted else None,
        median_step=float(np.median(steps)),
        worst_case=calls[int(np.argmax(steps))].name,
        floor=None,
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
