"""A bundle that is right in every byte but holds no model: enough for `verify`, which loads none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2_export.artifact.folder import seal, write_manifest
from lfm2_export.artifact.manifest import FileEntry, Manifest, MethodSpec, Source, TensorSpec
from lfm2_export.bundle.archive import chunks, measure, plan, write_file
from lfm2_export.bundle.description import describe
from lfm2_export.checkpoint.config import parse_config, to_dict

WINDOW, VOCAB = 64, 32
CONFIG: dict[str, Any] = {
    "model_type": "lfm2",
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 16,
    "block_auto_adjust_ff_dim": False,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "layer_types": ["conv", "full_attention"],
    "conv_L_cache": 3,
    "max_position_embeddings": 128,
    "eos_token_id": 7,
}


def small_artifact(folder: Path) -> Path:
    """An artifact folder with everything but a working program in `model.pte`."""
    folder.mkdir(parents=True)
    (folder / "model.pte").write_bytes(b"\x10\0\0\0ET12" + bytes(range(256)) * 3)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    vocab = {f"t{i}": i for i in range(VOCAB)}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": [{"id": 7}]}))
    (folder / "LICENSE").write_text("LFM Open License\n")
    config = parse_config(CONFIG, "config")
    write_manifest(
        folder,
        Manifest(
            files=seal(folder),
            source=Source(name="small", weights_sha256="0" * 64, config=to_dict(config)),
            recipe={
                "name": "xnnpack-int8",
                "summary": "int8",
                "target": "xnnpack",
                "form": "explicit",
                "window": WINDOW,
                "gates": {"lowering": {"max_error": 0.05}},
            },
            target="xnnpack",
            form="explicit",
            transport="inplace",
            cache_layout="heads-time",
            window=WINDOW,
            chat=True,
            methods=[_method()],
            quantization={"linear": "int8"},
            versions={"executorch": "1.5.1"},
            runtime_requirement="executorch==1.5.1",
        ),
    )
    return folder


def small_contents(folder: Path) -> dict[str, bytes]:
    """The files of a bundle of a new `small_artifact`, without bundle.json."""
    artifact = small_artifact(folder)
    files = {path.name: path.read_bytes() for path in artifact.iterdir()}
    step = {"top": [3, 5], "logits": [2.5, 1.0], "scale": 4.0, "sha256": "a" * 64}
    case = {"messages": [{"role": "user", "content": "Hello"}], "prompt": [1, 2], "reply": "Hi", "steps": [step, step]}
    golden = {"runtime": "executorch 1.5.1", "max_error": 0.05, "digest": "sha256", "cases": [case]}
    return {**files, "golden.json": json.dumps(golden).encode()}


def described(files: Mapping[str, bytes], kind: str = "android") -> dict[str, bytes]:
    """The same with a bundle.json that vouches for them, in the archive's order."""
    manifest = Manifest.model_validate_json(files["manifest.json"])
    entries = {name: FileEntry(size=(found := measure(data)).size, sha256=found.sha256) for name, data in files.items()}
    description = describe(kind, manifest, [7], entries)
    return {"bundle.json": description.to_json(), **dict(sorted(files.items()))}


def archived(files: Mapping[str, bytes], path: Path) -> Path:
    """Those files as an archive, in the order given."""
    measured = {name: measure(data) for name, data in files.items()}
    write_file(chunks(files, measured, plan(measured)), path)
    return path


def unpacked(files: Mapping[str, bytes], folder: Path) -> Path:
    """Those files as a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def _method() -> MethodSpec:
    inputs = [
        TensorSpec(name="tokens", dtype="int64", shape=[1, "T"]),
        TensorSpec(name="position", dtype="int64", shape=[1]),
        TensorSpec(name="conv_state.0", dtype="float32", shape=[1, 2, 8], written=True),
        TensorSpec(name="key.1", dtype="float32", shape=[1, WINDOW, 1, 4], written=True),
        TensorSpec(name="value.1", dtype="float32", shape=[1, WINDOW, 1, 4], written=True),
    ]
    logits = TensorSpec(name="logits", dtype="float32", shape=[1, VOCAB])
    return MethodSpec(name="forward", file="model.pte", inputs=inputs, outputs=[logits], max_tokens=WINDOW)
