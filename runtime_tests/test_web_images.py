"""transformers.js's own class for LFM2-VL loads what was exported, and says of images what eager says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import javascript
import numpy as np
import pictures
import pytest
import shown_process
import torch
from seeing_checkpoints import noise, write_seeing
from torchvision_apart import run_with_torchvision
from vision_checkpoints import SIGLIP2

from lfm2_export import runtimes
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.checkpoint.nano import EMBEDDED
from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.scenes import Scene, Thing
from lfm2_export.model.load import load_decoder, load_vision_encoder, open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.model.state import empty_state
from lfm2_export.model.vision.images import Image, encode, with_images
from lfm2_export.pipeline import export

IMAGE_TOKEN, NEW_TOKENS, PATCHES = 3, 8, 20
GRIDS = [(2, 6), (4, 4)]
DOCUMENT: dict[str, Any] = {
    "model_type": "lfm2_vl",
    "text_config": {
        "model_type": "lfm2",
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "block_auto_adjust_ff_dim": False,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["conv", "full_attention", "conv"],
        "max_position_embeddings": 256,
        "eos_token_id": 7,
        "pad_token_id": 0,
    },
    "vision_config": SIGLIP2 | {"hidden_size": 32, "intermediate_size": 48},
    "image_token_id": IMAGE_TOKEN,
    "projector_hidden_size": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["onnx-fp32", "onnx-int4"])
def test_transformers_js_gives_eagers_tokens_of_images(recipe: str, tmp_path: Path) -> None:
    javascript.need()
    (tmp_path / "config.json").write_text(json.dumps(DOCUMENT))
    init_checkpoint(str(tmp_path / "config.json"), tmp_path / "random")
    export(str(tmp_path / "random"), recipe, tmp_path / "out", overrides=["window=64"], effort="quick")
    images = [Image(torch.randn(rows * columns, 48), rows, columns) for rows, columns in GRIDS]
    tokens = [11, *[IMAGE_TOKEN] * 3, 12, 13, *[IMAGE_TOKEN] * 4, 14]
    padded = torch.randn(len(images), PATCHES, 48)
    for row, image in zip(padded, images, strict=True):
        row[: len(image.patches)] = image.patches
    job = {"folder": str(tmp_path / "out"), "tokens": tokens, "pixels": padded.flatten().tolist(), "patches": PATCHES}
    found = javascript.run("transformers_images.mjs", job | {"shapes": GRIDS, "newTokens": NEW_TOKENS})
    assert found["class"] == "Lfm2VlForConditionalGeneration"
    if recipe == "onnx-fp32":
        assert found["reply"] == reply(tmp_path / "random", tokens, images)
    else:  # rounded activations differ between versions of onnxruntime, so only the first choice is compared
        artifact = open_artifact(tmp_path / "out")
        session = runtimes.find("onnxruntime").open_session(artifact.folder, artifact.manifest)
        seen = [session.encode(each.patches.numpy(), each.rows, each.columns) for each in images]
        assert found["reply"][0] == int(session.prefill_with_images(tokens, np.concatenate(seen)).argmax())


def test_the_page_takes_pictures_and_says_of_them_what_eager_says(tmp_path: Path) -> None:
    """PNG files of sizes that no processor resizes, one chosen and two dropped; one is transparent."""
    javascript.need()
    folder = write_seeing(tmp_path / "seeing", "lfm2_vl")
    export(str(folder), "onnx-fp32", tmp_path / "out", overrides=["window=128"], verify=False)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, picture in zip(files, (noise(1), noise(2, 3, 1), noise(3, 1, 2)), strict=True):
        if file == files[2]:
            picture.putalpha(picture.convert("L"))
        picture.save(file)
    turns = [("What is this?", files)]  # with random weights a reply fills the window
    places = [str(path) for path in (folder, tmp_path / "out", tmp_path / "web", javascript.NODE_MODULES)]
    expected = run_with_torchvision(Path(shown_process.__file__), *places, json.dumps(turns))
    said, shown = zip(*turns, strict=True)
    job = {"folder": str(tmp_path / "web"), "turns": said, "pictures": shown, "scheme": "light"}
    seen = javascript.run("demo.mjs", job)
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert seen["replies"] == json.loads(expected)
    assert seen["said"] == [["What is this?", 3]]
    assert seen["parity"]["verdict"] == "Parity: pass"
    assert [row[1] for row in seen["parity"]["rows"]] == ["same tokens"] * 5
    assert all(float(row[3]) < 1e-5 for row in seen["parity"]["rows"])


def test_a_picture_of_the_page(make_artifact, tmp_path: Path) -> None:
    """Nano-vl is shown a drawn picture and asked about it: what is seen there is what is seen in the browser."""
    javascript.need()
    scene = Scene(2, 3, (Thing("star", "red", 0), Thing("circle", "blue", 4), Thing("ring", "green", 2)), seed=1)
    drawn = draw(scene)
    drawn.save(tmp_path / "shapes.png")
    turns = [("What color is the star?", [str(tmp_path / "shapes.png")]), ("How many shapes do you see?", [])]
    made, web = make_artifact("onnx-int8", "explicit", source="nano-vl").folder, tmp_path / "web"
    places = [str(path) for path in (EMBEDDED["nano-vl"], made, web, javascript.NODE_MODULES)]
    expected = run_with_torchvision(Path(shown_process.__file__), *places, json.dumps(turns))
    said, shown = zip(*turns, strict=True)
    job = {"folder": str(web), "turns": said, "pictures": shown, "scheme": "light", "screenshots": str(tmp_path)}
    seen = javascript.run("demo.mjs", job)
    assert (seen["problems"], seen["complaints"]) == ([], [])
    assert seen["replies"] == json.loads(expected) == ["The star is red.", "I see 3."]
    picture = pictures.taken(tmp_path / "light-chat.png", "page.png", height=900)
    flat = {color for count, color in drawn.getcolors() if count > 100}  # the ground and the shapes
    assert len(flat) == 1 + len(scene.things)
    assert flat <= {color for _, color in picture.getcolors(1 << 24)}


@torch.inference_mode()
def reply(folder: Path, tokens: list[int], images: list[Image]) -> list[int]:
    """Eager's own, greedy, each time over all that was said; ended by the token that ends."""
    checkpoint = open_checkpoint(str(folder))
    encoder, decoder = load_vision_encoder(checkpoint), load_decoder(checkpoint)
    seen, said = encode(encoder, images), list[int]()
    while len(said) < NEW_TOKENS and 7 not in said:
        ids = torch.tensor([[*tokens, *said]])
        x = with_images(encoder.config, ids, decoder.embed_tokens(ids), seen)
        call, state = decoder.call(ids, torch.zeros(1, dtype=torch.long)), empty_state(decoder.config, 1)
        said.append(int(decoder.from_embeddings(x, call, state)[0].argmax()))
    return said
