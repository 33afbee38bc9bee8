"""`chat --image`: pictures from files, between turns and into saved conversations; bad ones are one line."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from pathlib import Path

import chat_process
import numpy as np
import pytest
from command import code_of
from PIL import Image
from seeing_checkpoints import CELL, PROCESSORS, noise, write_seeing
from torchvision_apart import run_with_torchvision

from lfm2_export import extras
from lfm2_export.artifact.folder import Artifact, open_artifact
from lfm2_export.chat.saved_state import load_state
from lfm2_export.checkpoint.source import Checkpoint
from lfm2_export.model.load import open_checkpoint
from lfm2_export.pipeline import export

WINDOW = 128


@pytest.fixture(scope="module")
def checkpoint(seeing_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(seeing_checkpoint))


@pytest.fixture
def exported(seeing_artifact: Artifact) -> Path:
    return seeing_artifact.folder


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{seed}.png" for seed in range(2)]
    for seed, path in enumerate(paths):
        noise(seed).save(path)
    return [str(path) for path in paths]


def asked(artifact: Path, *options: str) -> tuple[str, ...]:
    return ("chat", str(artifact), "-p", "What is this?", "--max-tokens", "3", *options)


def test_chat_shows_pictures_and_saves_them(exported, files, tmp_path, capsys):
    state = str(tmp_path / "x.state")
    shown = [option for file in files for option in ("--image", file)]
    assert code_of(*asked(exported, *shown, "--json", "--save-state", state)) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["images"] == 2
    assert len(load_state(Path(state), open_artifact(exported)).pictures) == 2
    assert code_of(*asked(exported, "--image", files[0], "--json")) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] == first["prompt_tokens"] - 4
    assert code_of(*asked(exported, "--image", files[0], "--json", "--load-state", state)) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_chat_takes_pictures_between_turns(exported, files, tmp_path, capsys, monkeypatch):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    lines = (
        f"/image {files[0]}",
        f"/image {files[1]}",
        "/drop",
        f"/image {files[1]}",
        f"/image {bad}",
        "Hello",
        "/help",
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    assert code_of("chat", str(exported), "--max-tokens", "3") == 0
    told = capsys.readouterr().err
    for line in (
        "0.png, 4 tokens, goes with the next message\n",
        "1.png, 4 tokens, goes with the next message, as 1 before it does",
        "dropped 2 waiting pictures",
        "bad.png: not a picture",
        "1 image in",
        "/image FILE",
    ):
        assert line in told
    assert "Traceback" not in told


def bomb() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(12))) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


HOSTILE = {
    "truncated": (encoded(noise(0, 8, 8))[:400], "damaged"),
    "bomb": (bomb(), "make it smaller"),
    "text": (b"hello", "not a picture"),
    "elongated": (encoded(Image.new("RGB", (30000, 1))), "too elongated"),
    "elongated less": (encoded(Image.new("RGB", (150 * CELL, CELL))), "too elongated"),
}
STRANGE = {
    "one pixel": encoded(Image.new("RGB", (1, 1))),
    "cmyk": encoded(noise(0).convert("CMYK"), "JPEG"),
    "16 bits": encoded(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 255)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_picture_is_one_line_and_leaves_nothing(kind, exported, tmp_path, capsys):
    content, says = HOSTILE[kind]
    (path := tmp_path / "x.png").write_bytes(content)
    assert code_of(*asked(exported, "--image", str(path), "--save-state", str(tmp_path / "x.state"))) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert says in told.err
    assert str(path) in told.err
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_picture_is_a_picture(kind, exported, tmp_path, capsys):
    (path := tmp_path / "x.png").write_bytes(STRANGE[kind])
    assert code_of(*asked(exported, "--image", str(path), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert code_of(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_what_cannot_take_a_picture_says_so_in_one_line(exported, checkpoint, files, tmp_path, capsys, monkeypatch):
    overrides = [f"window={WINDOW}", "parts=text"]
    export(str(checkpoint.folder), "onnx-fp32", tmp_path / "text", overrides=overrides, verify=False)
    assert "takes no images" in refused(capsys, *asked(tmp_path / "text", "--image", files[0]))
    assert "no such file" in refused(capsys, *asked(exported, "--image", str(tmp_path / "none.png")))
    long = ("chat", str(exported), "-p", "sky " * WINDOW, "--image", files[0])
    assert "do not fit the window" in refused(capsys, *long)
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert "pip install 'lfm2-export[vision]'" in refused(capsys, *asked(exported, "--image", files[0]))


def test_an_export_refuses_a_processor_that_does_not_fit_and_leaves_nothing(checkpoint, tmp_path, capsys):
    folder = Path(shutil.copytree(checkpoint.folder, tmp_path / "vl"))
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS["lfm3_vl"] | {"patch_size": 16}))
    told = refused(capsys, "export", str(folder), "-r", "onnx-fp32", "-o", str(tmp_path / "out"), "--quiet")
    assert "preprocessor_config.json: patch_size is 16; the model's config.json says 4" in told
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.slow
def test_lfm2_vl_is_shown_pictures_through_torchvision(files, tmp_path):
    write_seeing(tmp_path / "lfm2-vl", "lfm2_vl")
    overrides = [f"window={WINDOW}"]
    export(str(tmp_path / "lfm2-vl"), "onnx-fp32", tmp_path / "out", overrides=overrides, verify=False)
    shown = [option for file in files for option in ("--image", file)]
    said = run_with_torchvision(Path(chat_process.__file__), *asked(tmp_path / "out", *shown, "--json"))
    assert json.loads(said)["images"] == 2
