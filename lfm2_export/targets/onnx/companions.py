"""What onnxruntime-genai and transformers.js want beside the graph: file names and what their configs must say.

Both look for the same tensor names (see `border.py`). transformers.js finds the file by a suffix for its precision
and the external data by a count of chunks (its `model-loader.js`); genai reads everything from a config of its own
(its `src/config.cpp`, and what its builder's `make_genai_config` writes).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lfm2_export.artifact.manifest import VISION_ENCODER
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.recipes import Recipe

FOLDER = "onnx"
DECODER = "decoder_model_merged"  # transformers.js' name of a decoder that is given embeddings
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
    """Return where a part of a vision-language model lies; the image part is in fp32 whatever the recipe."""
    suffix = "" if part == VISION_ENCODER else _SUFFIX[precision(recipe)]
    return f"{FOLDER}/{part}{suffix}.onnx"


def adapt_parts_for_transformers_js(folder: Path, recipe: Recipe, config: LFM2Config, chunks: dict[str, int]) -> None:
    """The same for a vision-language model, whose parts lie in a file each; `chunks` by part."""
    text = json.loads((folder / "config.json").read_bytes())["text_config"]
    settings: dict[str, Any] = {
        "dtype": {part: "fp32" if part == VISION_ENCODER else precision(recipe) for part in chunks}
    }
    if any(chunks.values()):
        files = {Path(part_file(recipe, part)).name: count for part, count in chunks.items() if count}
        settings["use_external_data_format"] = files
    spelled: dict[str, Any] = {"model_type": config.model_type, "layer_types": list(config.layer_types)}
    spelled |= {"conv_L_cache": config.conv_L_cache, "num_key_value_heads": config.num_key_value_heads}
    _add(folder / "config.json", {"text_config": text | spelled, "transformers.js_config": settings})
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
    stop = list(config.eos_token_ids)
    model = {
        "type": config.model_type,
        "context_length": recipe.window,
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stop or None,
        "pad_token_id": config.pad_token_id if config.pad_token_id is not None else next(iter(stop), None),
        "decoder": _genai_decoder(recipe, config),
    }
    search = {"do_sample": False, "max_length": recipe.window, "past_present_share_buffer": True}
    document = {"model": {key: value for key, value in model.items() if value is not None}, "search": search}
    _write(folder / "genai_config.json", document)


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
