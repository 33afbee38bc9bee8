"""What the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundles import archived

from hostile_bundles.spoil import HOSTILE, Files, Spoil
from lfm2_export.bundle.archive import measure


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """The manifest edited as JSON, bundle.json vouching for it."""

    def spoil(files: Files, place: Path) -> Path:
        document = json.loads(files["manifest.json"])
        change(document)
        data = json.dumps(document).encode()
        about = json.loads(files["bundle.json"])
        found = measure(data)
        about["files"]["manifest.json"] = {"size": found.size, "sha256": found.sha256}
        text = (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode()
        return archived({**files, "manifest.json": data, "bundle.json": text}, place / "b.zip")

    return spoil


def method_with(**changes: Any) -> Spoil:
    return manifest_with(lambda d: d["methods"][0].update(changes))


def tensor_with(number: int, **changes: Any) -> Spoil:
    return manifest_with(lambda d: d["methods"][0]["inputs"][number].update(changes))


def logits_with(**changes: Any) -> Spoil:
    return manifest_with(lambda d: d["methods"][0]["outputs"][0].update(changes))


def config_with(**changes: Any) -> Spoil:
    return manifest_with(lambda d: d["source"]["config"].update(changes))


CONV, KEY = 2, 3
FAILED = {"name": "law: reset", "runtime": "executorch", "status": "fail"}
HOSTILE |= {
    "manifest of the future": (manifest_with(lambda d: d.update(schema_version=2)), "schema version 2"),
    "manifest with an unknown key": (manifest_with(lambda d: d.update(evil=1)), "evil"),
    "manifest with a file that climbs out": (
        manifest_with(lambda d: d["files"].update({"../x": d["files"]["LICENSE"]})),
        "not there",
    ),
    "manifest with a file less": (manifest_with(lambda d: d["files"].pop("LICENSE")), "not listed in manifest.json"),
    "manifest with another checksum": (
        manifest_with(lambda d: d["files"]["LICENSE"].update(sha256="0" * 64)),
        "manifest.json and bundle.json differ",
    ),
    "no methods": (manifest_with(lambda d: d.update(methods=[])), "methods: expected 1 to"),
    "a method twice": (manifest_with(lambda d: d.update(methods=d["methods"] * 2)), "of different names"),
    "a thousand methods": (manifest_with(lambda d: d.update(methods=d["methods"] * 1000)), "of different names"),
    "a method in an unlisted file": (method_with(file="other.pte"), "unlisted file"),
    "a method in a file that climbs out": (method_with(file="../model.pte"), "unlisted file"),
    "calls of more tokens than the window": (method_with(max_tokens=65), "max_tokens 65"),
    "calls of no tokens": (method_with(max_tokens=0), "max_tokens 0"),
    "an unknown dtype": (tensor_with(CONV, dtype="object"), "dtype 'object'"),
    "a state in integers": (tensor_with(CONV, dtype="int8"), "does not fit"),
    "a negative dimension": (tensor_with(CONV, shape=[1, -2, 8]), "impossible shape"),
    "an absurd dimension": (tensor_with(KEY, shape=[1, 1 << 62, 1, 4]), "impossible shape"),
    "an absurd product": (tensor_with(KEY, shape=[1 << 20, 1 << 20, 8, 4]), "impossible shape"),
    "a hundred dimensions": (tensor_with(KEY, shape=[1] * 100), "impossible shape"),
    "another conv width": (tensor_with(CONV, shape=[1, 3, 8]), "does not fit"),
    "another hidden width": (tensor_with(CONV, shape=[1, 2, 16]), "does not fit"),
    "more kv heads": (tensor_with(KEY, shape=[2, 64, 1, 4]), "does not fit"),
    "another window in the cache": (tensor_with(KEY, shape=[1, 32, 1, 4]), "does not fit"),
    "a state of a layer that is not there": (tensor_with(KEY, name="key.7"), "state of layers"),
    "a conv state of an attention layer": (
        manifest_with(
            lambda d: (d["methods"][0]["inputs"][2].update(name="conv_state.1"), d["methods"][0]["inputs"].append(
                {"name": "conv_state.0", "dtype": "float32", "shape": [1, 2, 8]}
            ))
        ),
        "of the other kind",
    ),
    "a key without its value": (manifest_with(lambda d: d["methods"][0]["inputs"].pop()), "1 caches"),
    "a state missing": (manifest_with(lambda d: d["methods"][0]["inputs"].pop(2)), "state of layers"),
    "two tensors of one name": (tensor_with(1, name="tokens"), "of one name"),
    "no logits": (logits_with(name="answer"), "expected an output logits"),
    "logits over another vocabulary": (logits_with(shape=[1, 64]), "expected an output logits"),
    "logits without a shape": (logits_with(shape=[]), "expected an output logits"),
    "a window of one": (manifest_with(lambda d: (d.update(window=1), d["recipe"].update(window=1))), "window 1"),
    "a window beyond the positions": (manifest_with(lambda d: d.update(window=4096)), "window 4096"),
    "resident with its state outside": (
        manifest_with(lambda d: (d.update(form="resident"), d["recipe"].update(form="resident"))),
        "resident form does not",
    ),
    "a runtime without a version": (manifest_with(lambda d: d.update(runtime_requirement="executorch")), "no version"),
    "a runtime with a command": (
        manifest_with(lambda d: d.update(runtime_requirement="executorch==1\nrm -rf /")),
        "names no version",
    ),
    "a failed gate": (manifest_with(lambda d: d.update(parity=[FAILED])), "must not be shipped"),
    "a recipe for another target": (manifest_with(lambda d: d["recipe"].update(target="onnx")), "recipe: target"),
    "a recipe of another window": (manifest_with(lambda d: d["recipe"].update(window=2048)), "recipe: window"),
    "a recipe whose name is a path": (manifest_with(lambda d: d["recipe"].update(name="../x")), "recipe: name"),
    "a recipe without gates": (manifest_with(lambda d: d["recipe"].pop("gates")), "no gates"),
    "a gate that lets everything pass": (
        manifest_with(lambda d: d["recipe"]["gates"]["lowering"].update(max_error=1e400)),
        "not valid JSON",
    ),
    "a recipe whose gates are text": (manifest_with(lambda d: d["recipe"].update(gates="none")), "no gates"),
    "a vocabulary of none": (config_with(vocab_size=0), "vocab_size"),
    "an absurd conv width": (config_with(conv_L_cache=10**9), "conv_L_cache"),
    "a million layers": (config_with(num_hidden_layers=10**6, layer_types=None), "num_hidden_layers"),
    "heads that do not divide": (config_with(num_attention_heads=3, num_key_value_heads=2), "multiple of"),
    "a config without layers": (config_with(layer_types=[]), "layer_types"),
}  # fmt: skip
