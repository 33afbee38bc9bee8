"""Ways to spoil a good bundle. Each must be refused in one line that says what is wrong.

`HOSTILE` maps a name to a function of the good files (see `small_bundles`) and an empty folder, which returns the path
to verify, and to a piece of text that the refusal must contain. Where a manifest or a golden case is forged, the
checksums are made anew: the forger can compute them too.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from small_bundles import archived, described, unpacked

from lfm2_export.artifact.manifest import FileEntry
from lfm2_export.bundle import zip_format
from lfm2_export.bundle.archive import measure

Files = dict[str, bytes]
Spoil = Callable[[Files, Path], Path]
HOSTILE: dict[str, tuple[Spoil, str]] = {}


def spoiled(name: str, files: Files, folder: Path) -> tuple[Path, str]:
    spoil, expected = HOSTILE[name]
    (place := folder / "spoiled").mkdir()
    return spoil(files, place), expected


# ---- the archive's structure


def bytes_of(change: Callable[[bytearray], bytes | None]) -> Spoil:
    """Edits the good archive's bytes, in place or by returning others."""

    def spoil(files: Files, place: Path) -> Path:
        path = archived(files, place / "b.zip")
        data = bytearray(path.read_bytes())
        path.write_bytes(change(data) or bytes(data))
        return path

    return spoil


def patch(sign: bytes, offset: int, value: bytes, number: int = 0) -> Spoil:
    """Overwrites a field of the `number`th record that begins with `sign`."""

    def change(data: bytearray) -> None:
        at = -1
        for _ in range(number + 1):
            at = data.index(sign, at + 1)
        data[at + offset : at + offset + len(value)] = value

    return bytes_of(change)


def named(name: str) -> Spoil:
    """Adds a file of that name, listed in bundle.json like any other."""
    return lambda files, place: archived(described({**without(files, "bundle.json"), name: b"x"}), place / "b.zip")


def twice(first: str, second: str) -> Spoil:
    """Two entries whose names are the same, or the same to some systems."""

    def spoil(files: Files, place: Path) -> Path:
        names = [*files, first, second]
        contents = [*files.values(), b"x", b"y"]
        found = [measure(data) for data in contents]
        layout = zip_format.lay_out(
            zip_format.Entry(name, one.size, one.crc) for name, one in zip(names, found, strict=True)
        )
        pieces = [header + data for (_, header), data in zip(layout.headers, contents, strict=True)]
        (place / "b.zip").write_bytes(b"".join(pieces) + layout.tail)
        return place / "b.zip"

    return spoil


def zipped(method: int, **kinds: Any) -> Spoil:
    """What Python's own zipfile makes of the files."""

    def spoil(files: Files, place: Path) -> Path:
        with zipfile.ZipFile(place / "b.zip", "w", method) as archive:
            for name, data in {**files, **kinds}.items():
                archive.writestr(zipfile.ZipInfo(name), data, method)
        return place / "b.zip"

    return spoil


def overlapping(files: Files, place: Path) -> Path:
    """Two directory lines that point at one content, as zip bombs do to repeat it."""
    path = archived(files, place / "b.zip")
    data = path.read_bytes()
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    offset = data[first + 42 : first + 46]
    path.write_bytes(data[: second + 42] + offset + data[second + 46 :])
    return path


def gap(files: Files, place: Path) -> Path:
    """Bytes between two entries that nothing describes, with every offset after them right."""
    path = archived(files, place / "b.zip")
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\x03\x04", 4)
    data[second:second] = b"hidden"
    at = data.index(b"PK\x01\x02")
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 42 : at + 46] = struct.pack("<L", struct.unpack_from("<L", data, at + 42)[0] + 6)
    data[-6:-2] = struct.pack("<L", struct.unpack_from("<L", data, len(data) - 6)[0] + 6)
    path.write_bytes(data)
    return path


def zip64_claim(files: Files, place: Path) -> Path:
    """A size of 2^63 in a ZIP64 field."""
    path = archived(files, place / "b.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    length = struct.unpack_from("<H", data, at + 28)[0]
    data[at + 20 : at + 28] = b"\xff" * 8
    data[at + 30 : at + 32] = struct.pack("<H", 20)
    data[at + 46 + length : at + 46 + length] = struct.pack("<2H2Q", 1, 16, 1 << 63, 1 << 63)
    data[-10:-6] = struct.pack("<L", struct.unpack_from("<L", data, len(data) - 10)[0] + 20)
    path.write_bytes(data)
    return path


def tar(files: Files, place: Path) -> Path:
    with tarfile.open(place / "b.zip", "w") as archive:
        for name, data in files.items():
            (info := tarfile.TarInfo(name)).size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return place / "b.zip"


def without(files: Files, name: str) -> Files:
    return {key: data for key, data in files.items() if key != name}


LOCAL, LINE, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
HOSTILE |= {
    "empty file": (bytes_of(lambda d: d.clear()), "truncated, or no bundle"),
    "no entries": (lambda f, p: archived({}, p / "b.zip"), "holds no bundle.json"),
    "noise": (bytes_of(lambda d: bytes(range(256)) * 40), "truncated, or no bundle"),
    "a tar file": (tar, "truncated, or no bundle"),
    "last byte missing": (bytes_of(lambda d: bytes(d[:-1])), "does not end as"),
    "one byte after the end": (bytes_of(lambda d: bytes(d) + b"x"), "data after its end"),
    "a second archive after the first": (bytes_of(lambda d: bytes(d) * 2), "does not lie at its end"),
    "data before the beginning": (bytes_of(lambda d: b"#!/bin/sh\n" + bytes(d)), "does not lie at its end"),
    "a comment": (bytes_of(lambda d: bytes(d[:-2]) + b"\x02\0hi"), "does not end as"),
    "a comment that claims to be there": (patch(END, 20, b"\x05\0"), "comment"),
    "several disks": (patch(END, 4, b"\x01\0"), "several disks"),
    "a directory of 65534 entries": (patch(END, 8, b"\xfe\xff\xfe\xff"), "no bundle has that"),
    "one entry more than there are": (patch(END, 8, b"\x0a\0\x0a\0"), "cut short"),
    "one entry less than there are": (patch(END, 8, b"\x02\0\x02\0"), "more than its entries"),
    "a directory beyond the end": (patch(END, 16, b"\xf0\xff\xff\xff"), "no bundle has that"),
    "a directory in ZIP64 that is missing": (patch(END, 16, b"\xff\xff\xff\xff"), "ZIP64 record is missing"),
    "an absurd size": (patch(LINE, 20, b"\xf0\xff\xff\xff" * 2), "claim more bytes"),
    "a size of 2^63": (zip64_claim, "claim more bytes"),
    "a ZIP64 size without its field": (patch(LINE, 20, b"\xff" * 8), "no ZIP64 size"),
    "compressed": (zipped(zipfile.ZIP_DEFLATED), "compressed"),
    "a zip bomb": (zipped(zipfile.ZIP_DEFLATED, zeros=b"\0" * (8 << 20)), "compressed"),
    "stored, but by another program": (zipped(zipfile.ZIP_STORED), "no plain file"),
    "overlapping entries": (overlapping, "its directory is not"),
    "a gap between entries": (gap, "data between entries"),
    "encrypted": (patch(LINE, 8, b"\x01\0"), "encrypted"),
    "a data descriptor": (patch(LOCAL, 6, b"\x08\0"), "its header is not"),
    "two dates": (patch(LOCAL, 12, b"\x99\x50"), "its header is not"),
    "another date": (patch(LINE, 14, b"\x99\x50"), "its directory is not"),
    "another name in the local header": (patch(LOCAL, 30, b"evil", 3), "its header is not"),
    "another checksum in the local header": (patch(LOCAL, 14, b"\0\0\0\0", 2), "its header is not"),
    "a symbolic link": (patch(LINE, 38, struct.pack("<L", 0o120777 << 16), 2), "symbolic link"),
    "a folder's mode": (patch(LINE, 38, struct.pack("<L", 0o040755 << 16), 2), "no plain file"),
    "an executable": (patch(LINE, 38, struct.pack("<L", 0o100755 << 16), 2), "no plain file"),
    "setuid": (patch(LINE, 38, struct.pack("<L", 0o104644 << 16), 2), "no plain file"),
    "an attribute of DOS": (patch(LINE, 38, b"\x01\0", 2), "its directory is not"),
    "a name that is not UTF-8": (patch(LINE, 46, b"\xff\xfe", 2), "not UTF-8"),
    "a name twice": (twice("extra", "extra"), "same name"),
    "a name twice by case": (twice("Extra", "eXTRA"), "same name"),
    "bundle.json twice": (twice("bundle.json", "z"), "same name"),
    "a file that is also a folder": (twice("extra", "extra/inner"), "both a file and the folder"),
    "a path that climbs out": (named("../../etc/cron.d/evil"), "leaves the folder"),
    "a path that climbs in the middle": (named("a/../../b"), "leaves the folder"),
    "an absolute path": (named("/etc/passwd"), "leaves the folder"),
    "a drive": (named("C:evil"), "leaves the folder"),
    "backslashes": (named("..\\evil"), "leaves the folder"),
    "an empty part of a path": (named("a//b"), "no plain file name"),
    "a dot for a path": (named("a/./b"), "no plain file name"),
    "a trailing dot": (named("model.pte."), "no plain file name"),
    "a device of Windows": (named("con.json"), "no plain file name"),
    "a wildcard": (named("mod*l"), "no plain file name"),
    "a zero byte in a name": (named("model\0.pte"), "do not show"),
    "text that runs backwards": (named("evil\u202eetp.exe"), "do not show"),
    "a letter and its accent apart": (named("e\u0301"), "several spellings"),
    "a name of 300 letters": (named("x" * 300), "too long"),
    "a file that nobody lists": (lambda f, p: archived({**f, "z": b""}, p / "b.zip"), "not those that"),
    "a listed file missing": (lambda f, p: archived(without(f, "model.pte"), p / "b.zip"), "not those that"),
    "bundle.json not the first": (lambda f, p: archived(dict(sorted(f.items(), reverse=True)), p / "b.zip"), "order"),
    "no bundle.json": (lambda f, p: archived(without(f, "bundle.json"), p / "b.zip"), "holds no bundle.json"),
}  # fmt: skip


# ---- what bundle.json says


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


# ---- what the manifest says


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


# ---- the artifact's other files, and the golden cases


def file_with(name: str, data: bytes) -> Spoil:
    """One file replaced, manifest and bundle.json vouching for it."""

    def spoil(files: Files, place: Path) -> Path:
        manifest = json.loads(files["manifest.json"])
        if name in manifest["files"]:
            found = measure(data)
            manifest["files"][name] = FileEntry(size=found.size, sha256=found.sha256).model_dump()
        others = {**without(files, "bundle.json"), name: data, "manifest.json": json.dumps(manifest).encode()}
        return archived(described(others), place / "b.zip")

    return spoil


def golden_with(change: Callable[[dict[str, Any]], object]) -> Spoil:
    def spoil(files: Files, place: Path) -> Path:
        document = json.loads(files["golden.json"])
        change(document)
        return file_with("golden.json", json.dumps(document).encode())(files, place)

    return spoil


def case_with(**changes: Any) -> Spoil:
    return golden_with(lambda d: d["cases"][0].update(changes))


def step_with(**changes: Any) -> Spoil:
    return golden_with(lambda d: d["cases"][0]["steps"][0].update(changes))


def config_file(**changes: Any) -> Spoil:
    return lambda files, place: file_with(
        "config.json", json.dumps({**json.loads(files["config.json"]), **changes}).encode()
    )(files, place)


HOSTILE |= {
    "a program of another format": (file_with("model.pte", b"\x10\0\0\0ET99" + b"x" * 99), "not an ExecuTorch program"),
    "a program that is empty": (file_with("model.pte", b""), "not an ExecuTorch program"),
    "a config of another shape": (config_file(hidden_size=16), "another shape"),
    "a config of another model": (config_file(model_type="llama"), "only 'lfm2'"),
    "a config that is no JSON": (file_with("config.json", b"{"), "not valid JSON"),
    "a config that is a list": (file_with("config.json", b"[]"), "not a JSON object"),
    "a tokenizer of other ids": (file_with("tokenizer.json", b'{"model": {"vocab": {"a": 32}}}'), "ids outside"),
    "a tokenizer with negative ids": (file_with("tokenizer.json", b'{"added_tokens": [{"id": -1}]}'), "ids outside"),
    "a tokenizer with ids as text": (file_with("tokenizer.json", b'{"added_tokens": [{"id": "1"}]}'), "ids outside"),
    "a tokenizer that is binary": (file_with("tokenizer.json", b"\xff\0"), "not valid JSON"),
    "an end token beyond the model": (config_file(eos_token_id=99), "eos_token_id"),
    "golden cases missing": (
        lambda f, p: archived(described(without(without(f, "bundle.json"), "golden.json")), p / "b.zip"),
        "holds no golden.json",
    ),
    "golden cases that are none": (golden_with(lambda d: d.update(cases=[])), "cases: list should"),
    "golden cases of another gate": (golden_with(lambda d: d.update(max_error=100.0)), "the recipe's gate"),
    "a golden token beyond the model": (case_with(prompt=[1, 32]), "outside the vocabulary"),
    "a golden token below zero": (case_with(prompt=[-1]), "outside the vocabulary"),
    "a golden token as a fraction": (case_with(prompt=[1.5]), "prompt.0"),
    "a golden prompt longer than the window": (case_with(prompt=[1] * 64), "exceed the window"),
    "a golden prompt that is empty": (case_with(prompt=[]), "prompt: list should"),
    "a golden message without a role": (case_with(messages=[{"content": "x"}]), "role"),
    "golden logits that are not a number": (step_with(logits=[float("nan"), 1.0]), "not valid JSON"),
    "golden logits out of order": (step_with(logits=[1.0, 2.0]), "best first"),
    "golden logits above their scale": (step_with(logits=[5.0, 1.0]), "best first"),
    "golden logits fewer than tokens": (step_with(logits=[2.5]), "one for each"),
    "a golden token twice": (step_with(top=[3, 3]), "one for each"),
    "a golden digest that is none": (step_with(sha256="?"), "sha256"),
    "golden cases with an unknown key": (golden_with(lambda d: d.update(evil=1)), "evil"),
}  # fmt: skip


# ---- the unpacked folder


def folder_with(change: Callable[[Path], object]) -> Spoil:
    def spoil(files: Files, place: Path) -> Path:
        change(folder := unpacked(files, place / "bundle"))
        return folder

    return spoil


def link_out(folder: Path) -> None:
    (folder.parent / "outside").write_bytes((folder / "LICENSE").read_bytes())
    (folder / "LICENSE").unlink()
    (folder / "LICENSE").symlink_to(folder.parent / "outside")


HOSTILE |= {
    "folder: a link to the same bytes": (folder_with(link_out), "symbolic link"),
    "folder: a link to a folder": (folder_with(lambda f: (f / "more").symlink_to("/etc")), "symbolic link"),
    "folder: a link in a circle": (folder_with(lambda f: (f / "more").symlink_to(f / "more")), "symbolic link"),
    "folder: a pipe": (folder_with(lambda f: os.mkfifo(f / "pipe")), "neither a file nor a folder"),
    "folder: a pipe for the model": (
        folder_with(lambda f: (f / "model.pte").unlink() or os.mkfifo(f / "model.pte")),
        "neither a file nor a folder",
    ),
    "folder: a file nobody lists": (folder_with(lambda f: (f / "extra").write_bytes(b"")), "nobody vouches"),
    "folder: a file below nobody lists": (
        folder_with(lambda f: (f / "a").mkdir() or (f / "a" / "b").write_bytes(b"")),
        "nobody vouches",
    ),
    "folder: a file missing": (folder_with(lambda f: (f / "LICENSE").unlink()), "listed but missing"),
    "folder: a file cut": (folder_with(lambda f: (f / "LICENSE").write_bytes(b"LFM")), "3 bytes"),
    "folder: a file altered": (folder_with(lambda f: (f / "LICENSE").write_bytes(b"lfm Open License\n")), "SHA-256"),
    "folder: a name that is not text": (
        folder_with(lambda f: os.close(os.open(os.fsencode(f) + b"/\xff", os.O_CREAT))),
        "is not text",
    ),
}  # fmt: skip
