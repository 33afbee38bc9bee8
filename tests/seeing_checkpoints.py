"""Small vision-language checkpoints that can be shown files: random weights, nano's words, a processor of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import TOKENIZER_FILES
from PIL import Image
from tokenizers import Tokenizer
from vision_checkpoints import vision_model

from lfm2_export.checkpoint import nano, nano_vl
from lfm2_export.model.random_init import init_checkpoint

WORDS = {"lfm2_vl": ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"], "lfm3_vl": ["<image>"]}
CELL = 8  # pixels of an image token in each direction: two patches of four
PROCESSORS: dict[str, dict[str, Any]] = {
    "lfm2_vl": {
        "image_processor_type": "Lfm2VlImageProcessor",
        "encoder_patch_size": 4,
        "do_image_splitting": False,
        "min_image_tokens": 1,
        "max_image_tokens": 9,
    },
    "lfm3_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 4,
        "size": {"shortest_edge": CELL**2, "longest_edge": 9 * CELL**2},
    },
}


def write_seeing(folder: Path, family: str) -> Path:
    """A checkpoint of that family, whole: nothing is wrong with it."""
    tokenizer = Tokenizer.from_file(str(nano.PATH / "tokenizer.json"))
    image_token = tokenizer.get_vocab_size()
    config = vision_model(family, text={"vocab_size": 1088}, image_token_id=image_token).config
    shape = folder.with_name(f"{folder.name}.json")
    shape.write_text(config.to_json_string())
    init_checkpoint(str(shape), folder)
    for name in TOKENIZER_FILES:
        (folder / name).write_bytes((nano.PATH / name).read_bytes())
    tokenizer.add_special_tokens(WORDS[family])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_bytes((nano_vl.PATH / "chat_template.jinja").read_bytes())
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[family]))
    return folder


def noise(seed: int, rows: int = 2, columns: int = 2) -> Image.Image:
    """A picture of so many image tokens, which no processor above resizes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (rows * CELL, columns * CELL, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
