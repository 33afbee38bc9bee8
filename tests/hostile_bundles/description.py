"""What bundle.json says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundles import archived

from hostile_bundles.spoil import HOSTILE, Files, Spoil


def description_with(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(files: Files, place: Path) -> Path:
        document = json.loads(files["bundle.json"])
        change(document)
        data = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode().replace(b"SURROGATE", b"\\ud800")
        return archived({**files, "bundle.json": data}, place / "b.zip")

    return spoil


def description(data: bytes) -> Spoil:
    return lambda files, place: archived({**files, "bundle.json": data}, place / "b.zip")


def swapped(files: Files, place: Path) -> Path:
    """Two files under each other's names."""
    other = {**files, "config.json": files["tokenizer.json"], "tokenizer.json": files["config.json"]}
    return archived(other, place / "b.zip")


HOSTILE |= {
    "bundle.json empty": (description(b""), "not valid JSON"),
    "bundle.json a list": (description(b"[]"), "schema version None"),
    "bundle.json nests endlessly": (description(b"[" * 100_000), "not valid JSON"),
    "bundle.json in UTF-16": (description('{"schema_version": 1}'.encode("utf-16")), "not valid JSON"),
    "bundle.json huge": (description(b" " * (17 << 20)), "larger than"),
    "bundle.json with a key twice": (description(b'{"schema_version": 2, "schema_version": 1}'), "twice"),
    "bundle.json with a huge number": (description(b'{"schema_version": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "bundle.json of the future": (description_with(lambda d: d.update(schema_version=2)), "schema version 2"),
    "schema version as text": (description_with(lambda d: d.update(schema_version="1")), "schema version '1'"),
    "schema version true": (description_with(lambda d: d.update(schema_version=True)), "schema version True"),
    "an unknown key": (description_with(lambda d: d.update(run="rm -rf /")), "run: extra inputs"),
    "a key missing": (description_with(lambda d: d.pop("window")), "window: field required"),
    "half a character": (description_with(lambda d: d.update(source="SURROGATE")), "surrogates not allowed"),
    "an unknown kind": (description_with(lambda d: d.update(kind="toaster")), "kind: input should be"),
    "said to be for the web": (description_with(lambda d: d.update(kind="web")), "model/manifest.json"),
    "another window": (description_with(lambda d: d.update(window=32)), "something else"),
    "another runtime": (description_with(lambda d: d.update(runtime_requirement="executorch==9.9")), "something else"),
    "random weights hidden": (description_with(lambda d: d.update(random_weights=True)), "something else"),
    "another end token": (description_with(lambda d: d.update(eos_ids=[8])), "something else"),
    "an end token as text": (description_with(lambda d: d.update(eos_ids=["7"])), "eos_ids.0"),
    "spelled otherwise": (lambda f, p: description(f["bundle.json"] + b"\n")(f, p), "it was edited"),
    "a wrong size": (description_with(lambda d: d["files"]["model.pte"].update(size=1)), "bytes, 1 are listed"),
    "a negative size": (description_with(lambda d: d["files"]["model.pte"].update(size=-1)), "size: input"),
    "a wrong checksum": (description_with(lambda d: d["files"]["LICENSE"].update(sha256="0" * 64)), "SHA-256 differs"),
    "a checksum in capitals": (description_with(lambda d: d["files"]["LICENSE"].update(sha256="A" * 64)), "sha256"),
    "files swapped": (swapped, "bytes,"),
}  # fmt: skip
