"""What our processor and transformers' own make of pictures; run by `torchvision_apart`.

Arguments: folders with a processor's files, each followed by `--` and by lists of picture files, a list's joined by
commas ("" is no picture). Prints JSON: for each folder and list what each of the two made, or the error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from torchvision_apart import declare_operators

QUESTION = "What color is the star?"


def digest(tensors: Any) -> dict[str, Any]:
    """Each tensor's shape and the checksum of its bytes."""
    names = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
    return {
        name: [list(tensor.shape), hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()]
        for name in names
        for tensor in [tensors[name]]
    }


def made(folder: Path, paths: list[Path]) -> dict[str, Any]:
    from transformers import AutoProcessor

    from lfm2_export.checkpoint.vision_config import read_model_config
    from lfm2_export.errors import Lfm2ExportError
    from lfm2_export.images.opening import open_image
    from lfm2_export.images.pictures import with_pictures
    from lfm2_export.images.processor import load_processor
    from lfm2_export.model.vision.images import images_of

    library = AutoProcessor.from_pretrained(folder)
    prompt = "<image>" * len(paths) + QUESTION
    vision = read_model_config(folder / "config.json").vision
    assert vision is not None
    try:
        ours = load_processor(folder, vision)
        images = [open_image(path) for path in paths]
        pictures = ours.prepare(images)
        text = with_pictures(prompt, pictures.texts, ours.token.text)
        ids = library.tokenizer(text, add_special_tokens=False).input_ids
    except Lfm2ExportError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    whole = library(text=[prompt], images=[images], return_tensors="pt", do_convert_rgb=True)
    return {
        "ours": digest(pictures.tensors) | {"ids": ids},
        "library": digest(whole) | {"ids": whole["input_ids"][0].tolist()},
        "settings": library.image_processor.to_dict(),
        "grids": [[image.rows, image.columns] for image in images_of(vision, pictures.tensors)],
    }


if __name__ == "__main__":
    declare_operators()
    folder, *lists = sys.argv[1:]
    print(json.dumps([made(Path(folder), [Path(path) for path in each.split(",") if path]) for each in lists]))
