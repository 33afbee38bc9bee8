"""What onnxruntime-genai and transformers.js want beside the graph: file names and what their configs must say.

Both look for the same tensor names (see `border.py`). transformers.js finds the file by a suffix for its precision
and the external data by a count of chunks (its `model-loader.js`); genai reads everything from a config of its own
(its `src/config.cpp`, and what its builder's `make_genai_config` writes).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lfm2_export.artifact.manifest import TOKEN_EMBEDDING, VISION_ENCODER
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.checkpoint.processor_keys import OLDER, Lfm2VlProcessorKeys, has_processor, read_processor
from lfm2_export.checkpoint.vision_config import VisionConfig
from lfm2_export.quantize.scheme import Precision
from lfm2_export.recipes import Recipe

FOLDER = "onnx"
_GENAI_PROCESSOR = "genai_processor.json"
_GENAI_FILTERS = {2: "LINEAR", 3: "CUBIC"}  # its words, by Pillow's numbers
DECODER = "decoder_model_merged"  # transformers.js' name of a decoder that is given embeddings
_IMAGES: dict[Precision, str] = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}  # its words for the image part
_SUFFIX = {  # transformers.js' file names by its `dtype`
    **{"fp32": "", "q8": "_quantized", "q4": "_q4"},
    **{"fp16": "_fp16", "q4f16": "_q4f16"},
}


def precision(recipe: Recipe) -> str:
    """transformers.js' word for the recipe's narrowest weights."""
    bits = {rule.weight.bits for rule in recipe.quantization if rule.weight is not None}
    if recipe.options.get("precision") == "float16":
        return "q4f16" if 4 in bits else "fp16"
    return "q4" if 4 in bits else "q8" if 8 in bits else "fp32"


def model_file(recipe: Recipe) -> str:
    """Return where the graph lies in the artifact folder."""
    return f"{FOLDER}/model{_SUFFIX[precision(recipe)]}.onnx"


def part_file(recipe: Recipe, part: str) -> str:
    """Return where a part of a vision-language model lies."""
    return f"{FOLDER}/{part}{_SUFFIX[_part_precision(recipe, part)]}.onnx"


def adapt_parts_for_transformers_js(
    folder: Path, recipe: Recipe, config: LFM2Config, vision: VisionConfig, chunks: dict[str, int]
) -> None:
    """The same for a vision-language model, whose parts lie in a file each; `chunks` by part."""
    text = json.loads((folder / "config.json").read_bytes())["text_config"]
    settings: dict[str, Any] = {"dtype": {part: _part_precision(recipe, part) for part in chunks}}
    if any(chunks.values()):
        files = {Path(part_file(recipe, part)).name: count for part, count in chunks.items() if count}
        settings["use_external_data_format"] = files
    spelled: dict[str, Any] = {"model_type": config.model_type, "layer_types": list(config.layer_types)}
    spelled |= {"conv_L_cache": config.conv_L_cache, "num_key_value_heads": config.num_key_value_heads}
    whole = {"text_config": text | spelled, "image_token_id": vision.image_token_id, "transformers.js_config": settings}
    _add(folder / "config.json", whole)
    if vision.model_type == "lfm2_vl" and has_processor(folder):
        _complete_processor(folder, vision)
    _add_template(folder)


def adapt_for_transformers_js(folder: Path, recipe: Recipe, config: LFM2Config, chunks: int) -> None:
    """Add to `config.json` and `tokenizer_config.json`, where a checkpoint has them, what transformers.js reads there.

    That is which file to load, in how many `chunks` of external data (0: the weights are inside); `layer_types`, which
    older checkpoints spell otherwise; and the chat template, which it does not look for in a file of its own.
    """
    settings: dict[str, Any] = {"dtype": precision(recipe)}
    if chunks:
        settings["use_external_data_format"] = {Path(model_file(recipe)).name: chunks}
    _add(folder / "config.json", {"layer_types": list(config.layer_types), "transformers.js_config": settings})
    _add_template(folder)


def write_genai_config(folder: Path, recipe: Recipe, config: LFM2Config) -> None:
    """`genai_config.json`: greedy by default, contexts up to the recipe's window, one buffer for past and present."""
    _write_genai(folder, recipe, config, {"type": config.model_type}, {"decoder": _genai_decoder(recipe, config)})


def genai_embedding_file(recipe: Recipe) -> str:
    """Return where the token embedding lies that genai gives the images' embeddings."""
    return part_file(recipe, f"{TOKEN_EMBEDDING}_with_images")


def write_genai_images_config(folder: Path, recipe: Recipe, config: LFM2Config, vision: VisionConfig) -> bool:
    """The same for an LFM2-VL, and `genai_processor.json`, by which genai prepares pictures: whole, never in tiles.

    Returns False, with nothing written, where it has no class for the model, or no such way to resize.
    """
    if vision.model_type != "lfm2_vl" or not has_processor(folder):
        return False
    keys = read_processor(folder, vision)
    if not isinstance(keys, Lfm2VlProcessorKeys) or keys.resample not in _GENAI_FILTERS:
        return False
    decoder = _genai_decoder(recipe, config)
    decoder["filename"] = part_file(recipe, DECODER)
    decoder["inputs"] = {"inputs_embeds": "inputs_embeds"} | {
        k: v for k, v in decoder["inputs"].items() if k != "input_ids"
    }
    patches = keys.max_image_tokens * vision.merge**2
    parts = {
        "decoder": decoder,
        "embedding": {
            "session_options": decoder["session_options"],
            "filename": genai_embedding_file(recipe),
            "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
            "outputs": {"inputs_embeds": "inputs_embeds"},
        },
        "vision": {
            "session_options": decoder["session_options"],
            "filename": part_file(recipe, VISION_ENCODER),
            "config_filename": _GENAI_PROCESSOR,
            "patch_size": keys.encoder_patch_size,
            "spatial_merge_size": vision.merge,
            "max_num_patches": patches,
            "inputs": {
                "pixel_values": "pixel_values",
                "attention_mask": "pixel_attention_mask",
                "image_sizes": "spatial_shapes",
            },
            "outputs": {"image_features": "image_features"},
        },
    }
    _write_genai(folder, recipe, config, {"type": "lfm2_vl", "image_token_id": vision.image_token_id}, parts)
    _write(folder / _GENAI_PROCESSOR, _genai_processor(keys, vision.merge))
    return True


def _genai_processor(keys: Lfm2VlProcessorKeys, merge: int) -> dict[str, Any]:
    """onnxruntime-extensions' steps from a picture's file to what its patches are cut from."""
    pixels = (keys.encoder_patch_size * merge) ** 2  # of a token
    resize = {
        "height": keys.tile_size,
        "width": keys.tile_size,
        "interpolation": _GENAI_FILTERS[keys.resample],
        "smart_resize": 1,
        "min_pixels": keys.min_image_tokens * pixels,
        "max_pixels": keys.max_image_tokens * pixels,
        "patch_size": keys.encoder_patch_size,
        "merge_size": merge,
    }
    steps: list[tuple[str, dict[str, Any]]] = [("DecodeImage", {"color_space": "RGB"}), ("Resize", resize)]
    if keys.do_rescale:
        steps.append(("Rescale", {"rescale_factor": keys.rescale_factor}))
    if keys.do_normalize:
        steps.append(("Normalize", {"mean": list(keys.image_mean), "std": list(keys.image_std)}))
    steps += [("Permute3D", {"dims": [2, 0, 1]}), ("PixtralImageSizes", {})]
    transforms = [{"operation": {"name": kind.lower(), "type": kind, "attrs": attrs}} for kind, attrs in steps]
    return {"processor": {"name": "lfm2_vl", "transforms": transforms}}


def _write_genai(
    folder: Path, recipe: Recipe, config: LFM2Config, kind: dict[str, Any], parts: dict[str, dict[str, Any]]
) -> None:
    stop = list(config.eos_token_ids)
    model = {
        **kind,
        "context_length": recipe.window,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stop or None,
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else next(iter(stop), None),
        **parts,
    }
    search = {"do_sample": False, "max_length": recipe.window, "past_present_share_buffer": True}
    document = {"model": {key: value for key, value in model.items() if value is not None}, "search": search}
    _write(folder / "genai_config.json", document)


def _complete_processor(folder: Path, vision: VisionConfig) -> None:
    """It reads the older one of two files, and has no defaults for what transformers leaves out there."""
    path, kind = folder / OLDER, {"image_processor_type": "Lfm2VlImageProcessor", "processor_class": "Lfm2VlProcessor"}
    given = json.loads(path.read_bytes()) if path.is_file() else {}
    _write(path, kind | given | read_processor(folder, vision).model_dump(mode="json"))


def _part_precision(recipe: Recipe, part: str) -> str:
    """The image part has a rule of its own."""
    return _IMAGES[recipe.vision or "fp32"] if part == VISION_ENCODER else precision(recipe)


def _add_template(folder: Path) -> None:
    template = folder / "chat_template.jinja"
    if template.is_file():
        _add(folder / "tokenizer_config.json", {"chat_template": template.read_text(encoding="utf-8")})


def _add(path: Path, keys: dict[str, Any]) -> None:
    if path.is_file():
        _write(path, json.loads(path.read_bytes()) | keys)


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_bytes((json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def _genai_decoder(recipe: Recipe, config: LFM2Config) -> dict[str, Any]:
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    outputs = {"logits": "logits"}
    if config.attention_layers:
        for kind in ("key", "value"):
            inputs[f"past_{kind}_names"] = f"past_key_values.%d.{kind}"
            outputs[f"present_{kind}_names"] = f"present.%d.{kind}"
    if config.conv_layers:
        inputs["past_conv_names"] = "past_conv.%d"
        outputs["present_conv_names"] = "present_conv.%d"
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": model_file(recipe),
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "layer_types": list(config.layer_types),
        "conv_cache_size": config.conv_L_cache,
        "inputs": inputs,
        "outputs": outputs,
    }
