"""Did a change of the lowering change anything for users? Every recipe's artifact of nano, at two commits, compared.

    python -m benchmarks.same_artifacts --against 80f8f49 [--recipe xnnpack-int4 …] [--keep FOLDER]

The older side is made in a git worktree of its own, by its own code. Compared are: a `.pte` of XNNPACK byte for byte;
an ONNX graph by the Merkle hash of everything upstream of each output (operators, attributes, weights, names of inputs,
but no names of nodes or values between, nor their order); its logits, bit for bit, on onnxruntime's CPU; and the
manifest's methods. A `.pte` for Qualcomm's NPU is not reproducible (docs/npu.md): of it the methods and delegation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import typer
from rich.console import Console
from rich.table import Table

from lfm2_export import recipes

ROOT = Path(__file__).parent.parent
_PROMPT = (1, 6, 40, 41, 300, 7, 9)
_VARIANTS = {"onnx-int4": ("options.conv=plain", "options.fused_embedding=true")}  # what no recipe has by default


def main(
    against: Annotated[str, typer.Option(help="The commit to compare with.")],
    recipe: Annotated[list[str] | None, typer.Option(help="Only this recipe (repeatable).")] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Keep the older side's artifacts here, and use those there.")
    ] = None,
) -> None:
    """Export with both, compare, and leave with 1 if anything differs."""
    table = Table("recipe", "form", "what", "verdict")
    same = True
    with tempfile.TemporaryDirectory() as scratch:
        place = keep or Path(scratch) / "older"
        older = Path(scratch) / "tree"
        try:
            for name, form, changes in _exports(recipe or recipes.names()):
                label = "-".join([name, form, *(change.partition("=")[0].rpartition(".")[2] for change in changes)])
                if not (place / label).is_dir():
                    _check_out(against, older)
                    _export(older, name, form, changes, place / label)
                _export(ROOT, name, form, changes, new := Path(scratch) / label)
                for what, equal in _compare(place / label, new):
                    same &= equal
                    verdict = "[green]same[/]" if equal else "[bold red]DIFFERS[/]"
                    table.add_row(" ".join([name, *changes]), form, what, verdict)
                shutil.rmtree(new)
        finally:
            if older.is_dir():
                subprocess.run(["git", "worktree", "remove", "--force", str(older)], cwd=ROOT, check=True)
    Console().print(table)
    raise typer.Exit(0 if same else 1)


def _exports(names: list[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    for name in names:
        for form in ("explicit", "resident") if recipes.load(name).target == "xnnpack" else ("explicit",):
            yield name, form, ()
        for change in _VARIANTS.get(name, ()):
            yield name, "explicit", (change,)


def _check_out(commit: str, folder: Path) -> None:
    if not folder.is_dir():
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(folder), commit], cwd=ROOT, check=True)


def _export(tree: Path, name: str, form: str, changes: tuple[str, ...], output: Path) -> None:
    print(f"{tree.name}: {name}, {form} {' '.join(changes)}", file=sys.stderr)
    options = ["--recipe", name, "--output", str(output.resolve()), "--no-verify", "--quiet", "--set", f"form={form}"]
    options += [word for change in changes for word in ("--set", change)]
    subprocess.run(
        [sys.executable, "-m", "lfm2_export", "export", "nano", *options],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree.resolve())},
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _compare(older: Path, newer: Path) -> Iterator[tuple[str, bool]]:
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (older, newer)]
    yield "methods of the manifest", manifests[0]["methods"] == manifests[1]["methods"]
    target = manifests[0]["target"]
    for file in dict.fromkeys(method["file"] for method in manifests[0]["methods"]):
        ours, theirs = newer / file, older / file
        if target == "xnnpack":
            yield f"{file}: bytes", ours.read_bytes() == theirs.read_bytes()
        elif target in ("onnx", "onnx_qnn"):
            yield f"{file}: upstream of each output", merkle(ours) == merkle(theirs)
            yield f"{file}: logits on the CPU", _equal(_run(ours), _run(theirs))


def merkle(path: Path) -> dict[str, str]:
    """Return, for each output of a model, the hash of everything that it is computed from."""
    model = onnx.load(path)
    hashes = {value.name: _digest("input", value.name) for value in model.graph.input}
    hashes |= {
        tensor.name: _digest(
            "weight", tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes()
        )
        for tensor in model.graph.initializer
        if tensor.name not in hashes
    }
    hashes[""] = ""
    for node in model.graph.node:
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        upstream = _digest(node.domain, node.op_type, *attributes, *(hashes[name] for name in node.input))
        hashes |= {name: _digest(upstream, number) for number, name in enumerate(node.output) if name}
    return {value.name: hashes[value.name] for value in model.graph.output}


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _run(path: Path) -> list[np.ndarray]:
    """All outputs of one call over an empty state, with whatever each input may be."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {given.name: _filled(given) for given in session.get_inputs()})
    return found


def _filled(given: Any) -> np.ndarray:
    """Tokens, positions and masks of a short prompt; zeros for a state."""
    sizes = {"batch_size": 1, "sequence_length": len(_PROMPT), "total_sequence_length": len(_PROMPT)}
    shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in given.shape]
    dtype = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float16)": np.float16}.get(given.type)
    if given.name in ("input_ids", "tokens"):
        return np.resize(np.array(_PROMPT), shape).astype(dtype or np.int64)
    if given.name == "position_ids":
        return np.arange(len(_PROMPT), dtype=np.int64)[None]
    ones = given.name in ("attention_mask", "num_logits_to_keep")
    return (np.ones if ones else np.zeros)(shape, dtype or np.float32)


def _equal(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    return len(ours) == len(theirs) and all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    typer.run(main)
