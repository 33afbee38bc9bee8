"""The script that trains a model on drawn pictures: what it saves is read, by transformers' processor and by ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import picture_process
import pytest
import torch
from PIL import Image
from torchvision_apart import run_with_torchvision
from transformers import AutoModelForImageTextToText, AutoTokenizer

from lfm2_export.checkpoint.nano_vl.drawing import draw
from lfm2_export.checkpoint.nano_vl.scenes import GRIDS
from lfm2_export.checkpoint.nano_vl.tasks import KINDS, picture_questions
from lfm2_export.checkpoint.processor_keys import read_processor
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.checkpoint.vision_config import VisionConfig, read_model_config
from lfm2_export.errors import CheckpointError, UsageError
from lfm2_export.evaluate.questions import picture_accuracy
from lfm2_export.images.pictures import with_pictures
from lfm2_export.runtimes.session import Session

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a few steps of the training script leave, and what it says."""
    out = tmp_path_factory.mktemp("taught") / "nano-vl"
    few = ["--sight", "20", "--steps", "20", "--batch", "4", "--asked", "10", "--threads", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "training" / "nano.py"), "--family", "lfm2_vl", *few],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout


def test_a_few_steps_of_training_lower_both_losses(taught):
    losses = {
        what: [float(loss) for loss in re.findall(rf"^{what}step \d+ loss ([\d.]+):", taught[1], re.MULTILINE)]
        for what in ("sight, ", "")
    }
    assert [len(found) for found in losses.values()] == [10, 10]
    for found in losses.values():
        assert found[-1] < 0.95 * found[0]


def test_what_training_saves_is_what_transformers_reads(taught):
    folder, _ = taught
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert {key: keys for key, keys in loaded.items() if keys} == {}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    assert model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")
    assert max(tokenizer.get_vocab().values()) < model.config.text_config.vocab_size
    for word in (" circle", " shapes", " center", "<|image_start|>", "<|img_row_2_col_5|>"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1


def test_nanos_own_words_keep_their_tokens(taught):
    from lfm2_export.checkpoint.nano import PATH
    from lfm2_export.checkpoint.nano.tasks import questions

    nano, ours = AutoTokenizer.from_pretrained(PATH), AutoTokenizer.from_pretrained(taught[0])
    said = [message["content"] for question in questions(0, 200) for message in question.messages]
    assert nano(said, add_special_tokens=False).input_ids == ours(said, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def processed(taught, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """What our processor and transformers' make of lists of pictures, with other settings if any are given."""

    def run(lists: list[list[Image.Image]], **settings: Any) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("pictures")
        for path in taught[0].iterdir():
            if path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
        nested = folder / "processor_config.json"
        document = json.loads(nested.read_text())
        document["image_processor"] |= settings
        nested.write_text(json.dumps(document))
        words = []
        for at, images in enumerate(lists):
            paths = [folder / f"{at}-{number}.png" for number in range(len(images))]
            for path, image in zip(paths, images, strict=True):
                image.save(path)
            words.append(",".join(map(str, paths)))
        return json.loads(run_with_torchvision(Path(picture_process.__file__), str(folder), *words))

    return run


def test_our_processor_is_transformers_own_and_what_training_shows(processed, taught, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "training")
    from vision import processed as trained_on

    scenes = [question.scene for question in picture_questions(0, 12)]
    scenes = [next(scene for scene in scenes if scene.grid == grid) for grid in dict.fromkeys(GRIDS)]
    strange = [Image.new("RGB", (1, 1)), Image.effect_noise((300, 7), 90), Image.effect_noise((97, 61), 90)]
    found = processed([[draw(scene)] for scene in scenes] + [[image] for image in strange] + [strange])
    for each in found:
        assert "error" not in each, each
        assert each["ours"] == each["library"]
        assert each["settings"] == json.loads((taught[0] / "preprocessor_config.json").read_text())
    for scene, each in zip(scenes, found, strict=False):
        assert each["grids"] == [[2 * scene.rows, 2 * scene.columns]]
        shown = trained_on(np.array(draw(scene))[None])
        padding = each["ours"]["pixel_values"][0][1] - shown["pixel_values"].shape[1]
        for name in ("pixel_values", "pixel_attention_mask"):
            at_the_end = (0, 0) * (shown[name].ndim - 2) + (0, padding)
            shown[name] = torch.nn.functional.pad(shown[name], at_the_end)
        assert picture_process.digest(shown).items() <= each["ours"].items()


def test_large_pictures_become_tiles_and_elongated_ones_are_refused(processed):
    published = {"do_image_splitting": True, "min_image_tokens": 64, "max_image_tokens": 256}
    large, small = Image.effect_noise((1000, 700), 60), Image.effect_noise((200, 100), 60)
    elongated = [[Image.new("RGB", size)] for size in ((30000, 1), (1, 30000))]
    tiled, *refused = processed([[large, small], *elongated], **published)
    assert tiled["ours"] == tiled["library"]
    assert len(tiled["grids"]) > 4
    assert tiled["grids"][:-2] == [[32, 32]] * (len(tiled["grids"]) - 2)
    for each in refused:
        assert re.fullmatch(r"ImageError: image 1 is too elongated \(.*30000.*\): .*allows 256; crop it", each["error"])


class Knowing(Session):
    """Gives the right answers to the held-out questions, one after the other, of which it knows `answers`."""

    runtime, version, window, takes_images = "knowing", "0", 1024, True

    def __init__(self, tokenizer: ChatTokenizer, answers: list[str], image_token: int) -> None:
        self.answers = iter([[*tokenizer.encode(answer), tokenizer.eos_ids[0]] for answer in answers])
        self.image_token, self.rest, self.fed = image_token, list[int](), 0
        self.seen: list[np.ndarray] = []

    position = property(lambda self: self.fed)

    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        assert patches.shape == (rows * columns, 768)
        self.seen.append(patches)
        return np.zeros((rows * columns // 4, 1), np.float32)

    def prefill_with_images(self, tokens: Sequence[int], images: np.ndarray) -> np.ndarray:
        assert list(tokens).count(self.image_token) == len(images)
        self.rest = next(self.answers)
        return self.prefill(tokens)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        self.fed += len(tokens)
        return np.eye(1088, dtype=np.float32)[self.rest.pop(0) if self.rest else 0]

    def reset(self) -> None:
        self.fed = 0


@pytest.mark.parametrize("wrong", [0, 3])
def test_the_share_of_right_answers_about_pictures(wrong, taught):
    asked = picture_questions(500, 10, "heldout")
    config, vision = read_model_config(taught[0] / "config.json")
    tokenizer = ChatTokenizer.load(taught[0], config)
    answers = ["I see it." if at < wrong else question.answer for at, question in enumerate(asked)]
    session = Knowing(tokenizer, answers, vision.image_token_id)
    found = picture_accuracy(session, tokenizer, len(asked))
    assert found["all"] == 1 - wrong / 10
    assert set(found) == {"all", *KINDS}
    assert len({patches.tobytes() for patches in session.seen}) == 10


@pytest.fixture
def vision(taught) -> VisionConfig:
    """The image part of the trained model's config.json."""
    found = read_model_config(taught[0] / "config.json").vision
    assert found is not None
    return found


WRONG_SETTINGS = {
    "encoder_patch_size": (14, "is 14; the model's config.json says 16"),
    "downsample_factor": (4, "is 4; the model's config.json says 2"),
    "image_std": ([0, 1, 1], "image_std.0 is 0"),
    "image_mean": ([0.5, 0.5], "image_mean"),
    "max_image_tokens": (0, "is 0"),
    "min_image_tokens": (99, "above its maximum"),
    "max_tiles": (10**9, "is 1000000000"),
    "rescale_factor": (float("nan"), "is nan"),
    "resample": ("bilinear", "'bilinear'"),
}


@pytest.mark.parametrize("key", WRONG_SETTINGS)
def test_settings_that_do_not_fit_are_refused_in_one_line(key, taught, vision, tmp_path):
    value, says = WRONG_SETTINGS[key]
    document = json.loads((taught[0] / "processor_config.json").read_text())
    document["image_processor"][key] = value
    (tmp_path / "processor_config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        read_processor(tmp_path, vision)
    assert "\n" not in str(caught.value)


def test_tiles_must_be_whole_image_tokens(vision, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"tile_size": 500}')
    with pytest.raises(CheckpointError, match="tile_size is 500; expected a multiple of 32"):
        read_processor(tmp_path, vision)


def test_both_places_of_the_settings_are_read(taught, vision, tmp_path):
    nested = read_processor(taught[0], vision)
    (tmp_path / "preprocessor_config.json").write_bytes((taught[0] / "preprocessor_config.json").read_bytes())
    assert read_processor(tmp_path, vision) == nested
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="has an image processor"):
        read_processor(tmp_path, vision)


def test_places_in_the_prompt_and_pictures_must_agree():
    two = ("[a]", "[b]")
    assert with_pictures("x<image>y<image>z", two, "<image>") == "x[a]y[b]z"
    assert with_pictures("no place", (), "<image>") == "no place"
    for prompt, texts in (("<image>", two), ("<image><image><image>", two), ("none", two), ("<image>", ())):
        with pytest.raises(UsageError, match=r"places \(<image>\) for \d images"):
            with_pictures(prompt, texts, "<image>")


def test_the_processor_of_another_family_is_refused(vision, taught):
    with pytest.raises(CheckpointError, match=r"patch_size is 14; the model's config\.json says 16"):
        read_processor(taught[0], replace(vision, model_type="lfm3_vl"))
