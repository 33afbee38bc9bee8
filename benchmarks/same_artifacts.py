"""Whether a change of the lowering changed anything for users: each recipe's artifact of nano, made by two commits.

    python -m benchmarks.same_artifacts --against main --recipe xnnpack-int4 --recipe onnx-int4

The older commit is checked out for the while; the newer side is the tree that this file lies in, committed or not. An
XNNPACK program must be the same byte for byte. ONNX graphs must compute the same, and give the same bits for a short
prompt on onnxruntime's CPU (fp16 ones for the NPU on its emulator): names and order of their nodes may change, nothing
that runs. Qualcomm's compiler gives no file twice, so a program for its NPU must have the same interface and
delegation, and the same bits on the emulator. Whatever else lies in the folder must be the same byte for byte.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.onnx_digest import digest
from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.cli import console
from lfm2_export.errors import Lfm2ExportError
from lfm2_export.runtimes.session import Session

TREE = Path(__file__).resolve().parent.parent
FORMS = {"xnnpack": ("explicit", "resident")}  # the other targets have the explicit one alone
VARIANTS = {
    "onnx-int4": ("options.conv=plain", "options.conv=fused", "options.fused_embedding=true")
}  # what no recipe has by default
REBUILT = {"xnnpack": (), "onnx": (".onnx",), "onnx_qnn": (".onnx", "weights.bin"), "qnn": (".pte",)}  # not by bytes
RUNTIME = {"onnx": "onnxruntime", "onnx_qnn": "onnxruntime-qnn", "qnn": "qnn"}
PROMISED = ["target", "form", "transport", "cache_layout", "window", "chat", "methods", "quantization", "npu"]
PROMISED += ["runtime_requirement"]
PROMPT, STEPS = (1, 17, 300, 5, 900, 42, 8), 3  # any tokens of nano's; then so many greedy ones


def main(
    against: Annotated[str, typer.Option(help="The older commit.")],
    recipes: Annotated[
        list[str] | None, typer.Option("--recipe", "--recipes", help="Recipe (repeatable). [all of the older commit's]")
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Where the older side's artifacts are kept for a next run.")] = None,
    baseline_only: Annotated[bool, typer.Option(help="Make what --keep lacks, compare nothing.")] = False,
) -> None:
    """Make both sides, compare them, print a table; exit code 1 if anything differs."""
    commit = _git("rev-parse", "--short=12", f"{against}^{{commit}}")
    known = [Path(name).stem for name in _git("ls-tree", "--name-only", commit, "recipes/").splitlines()]
    if unknown := sorted(set(recipes or []) - set(known)):
        raise typer.BadParameter(f"{against} has no recipe {', '.join(unknown)}; it has {', '.join(known)}")
    rows, differ = [], False
    with ExitStack() as stack, console.progress(quiet=False) as stage:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        tree = cache(lambda: stack.enter_context(_checked_out(commit, scratch / "tree")))
        for recipe, form, changes in _exports(recipes or known):
            what = " ".join([recipe, form, *changes])
            place = "-".join([recipe, form, *(change.partition("=")[0].rpartition(".")[2] for change in changes)])
            stage(f"{what}: at {against}")
            old, new = (keep or scratch).resolve() / commit / place, scratch / "here" / place
            if not old.exists() and (failure := _export(tree(), recipe, form, changes, old)):
                raise SystemExit(f"{against} cannot export {what}: {failure}")
            if baseline_only:
                continue
            stage(f"{what}: here")
            failure = _export(TREE, recipe, form, changes, new)
            how, found = ("", [f"cannot be exported: {failure}"]) if failure else differences(old, new)
            differ |= bool(found)
            rows.append(f"| {what} | {how} | {'; '.join(found) or 'same'} |")
    if rows:
        print("\n".join(["| artifact | compared | result |", "| --- | --- | --- |", *rows]))
    raise typer.Exit(int(differ))


def _exports(names: list[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Recipe, form and overrides of every artifact to compare."""
    for name in names:
        yield from ((name, form, ()) for form in FORMS.get(name.partition("-")[0], ("explicit",)))
        yield from ((name, "explicit", (change,)) for change in VARIANTS.get(name, ()))


def _export(tree: Path, recipe: str, form: str, changes: tuple[str, ...], output: Path) -> str | None:
    """Export nano with the package of that tree; the last line of what it says if it fails, else None."""
    command = [sys.executable, "-m", "lfm2_export", "export", "nano", "--recipe", recipe, "--form", form]
    command += [word for change in changes for word in ("--set", change)]
    command += ["--no-verify", "--quiet", "--output", str(output)]
    output.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    return (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1] if done.returncode else None


def differences(old: Path, new: Path) -> tuple[str, list[str]]:
    """Return what was compared, and every difference found."""
    before, after = (json.loads((folder / "manifest.json").read_text()) for folder in (old, new))
    target = before["target"]
    found = [f"manifest: {key}" for key in PROMISED if before[key] != after[key]]
    files, now = before["files"], after["files"]
    both = sorted(files.keys() & now.keys())
    found += [f"{name}: only {'here' if name in now else 'before'}" for name in sorted(files.keys() ^ now.keys())]
    found += [
        f"{name}: other bytes" for name in both if files[name] != now[name] and not name.endswith(REBUILT[target])
    ]
    how = "interface" if REBUILT[target] else "every byte"
    if target not in RUNTIME or found:
        return how, found
    if target != "qnn":
        graphs = [name for name in both if name.endswith(".onnx")]
        how += f", {len(graphs)} graph{'s'[: len(graphs) > 1]}"
        for name in graphs:
            found += [f"{name}: {why}" for why in digest(old / name).differences(digest(new / name))]
    where, results = _results(old)
    try:
        found += [] if results == _results(new)[1] else [f"other bits on {where}"]
    except Lfm2ExportError as error:
        found.append(f"does not run: {error}")
    return f"{how}, {STEPS + 1} calls on {where}", found


def _results(folder: Path) -> tuple[str, list[bytes]]:
    """Run the prompt and greedy steps: the runtime, and each call's logits and then the state, as bytes."""
    manifest = open_artifact(folder).manifest
    runtime = runtimes.find(RUNTIME[manifest.target])
    session: Session = runtime.reference_session(folder, manifest) or runtime.open_session(folder, manifest)
    logits = [session.prefill(PROMPT)]
    for _ in range(STEPS):
        logits.append(session.decode(int(np.argmax(logits[-1]))))
    state = session.state().tensors
    return session.runtime, [array.tobytes() for array in [*logits, *(state[name] for name in sorted(state))]]


@contextmanager
def _checked_out(commit: str, folder: Path) -> Iterator[Path]:
    _git("worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=TREE, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    typer.run(main)
