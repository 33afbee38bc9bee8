"""nano given eyes: its weights and words, a tower and a projector from nothing, and the processor that they need."""

import json
from pathlib import Path

import numpy as np
import torch
from families import CONTEXT, vl_configuration
from tokenizer import IMAGE_TOKENS, with_template, with_words
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Lfm2VlForConditionalGeneration, PreTrainedTokenizerFast

from lfm2_export.checkpoint.nano import PATH as NANO
from lfm2_export.checkpoint.nano_vl import PATH
from lfm2_export.checkpoint.nano_vl.patches import FOLD, IMAGE, PATCH, patches

WORDS = (
    *(" circle", " square", " triangle", " star", " ring", " cross", " shape", " shapes", " digits", " digit"),
    *(" see", " at", " top", " bottom", " left", " right", " center"),
)
VOCABULARY = 1088  # nano's 1024 rows and room for words and image tokens, a multiple of 32
_TOKENS = (4, 9)  # of a picture: from 2 × 2 cells to 3 × 3

# As `Lfm2VlImageProcessor.save_pretrained` writes it. A picture with fewer tokens than `_TOKENS` says, or more, is
# resized; none is cut into tiles.
IMAGE_PROCESSOR = {
    "do_image_splitting": False,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "downsample_factor": FOLD,
    "encoder_patch_size": PATCH,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Lfm2VlImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "max_image_tokens": _TOKENS[1],
    "max_num_patches": _TOKENS[1] * FOLD**2,
    "max_pixels_tolerance": 2.0,
    "max_tiles": 10,
    "min_image_tokens": _TOKENS[0],
    "min_tiles": 2,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "return_row_col_info": False,
    "size": {"height": 512, "width": 512},
    "tile_size": 512,
    "use_thumbnail": True,
}


def nano_with_eyes() -> tuple[Lfm2VlForConditionalGeneration, PreTrainedTokenizerFast]:
    """An LFM2-VL whose decoder is nano with a few words more, and whose tower and projector know nothing yet."""
    words = with_words(Tokenizer.from_file(str(NANO / "tokenizer.json")), WORDS)
    words.add_special_tokens(IMAGE_TOKENS)
    tokenizer = with_template(words, PATH / "chat_template.jinja", CONTEXT)
    nano = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    text = nano.config
    known, text.vocab_size, text.dtype = text.vocab_size, VOCABULARY, None
    model = Lfm2VlForConditionalGeneration(vl_configuration(text, words.token_to_id(IMAGE)))
    old = nano.model.state_dict()
    new = model.model.language_model.state_dict()
    embedding = new["embed_tokens.weight"].normal_(std=old["embed_tokens.weight"].std())
    embedding[:known] = old["embed_tokens.weight"]
    model.model.language_model.load_state_dict(old | {"embed_tokens.weight": embedding})
    return model, tokenizer


def processed(pictures: np.ndarray) -> dict[str, torch.Tensor]:
    """What the processor makes of pictures `[B, H, W, 3]`, uint8, of a size that it leaves alone; without padding."""
    count, height, width, _ = pictures.shape
    rows, columns = height // PATCH, width // PATCH
    return {
        "pixel_values": torch.from_numpy(patches(pictures)),
        "pixel_attention_mask": torch.ones(count, rows * columns, dtype=torch.int32),
        "spatial_shapes": torch.tensor([[rows, columns]] * count),
    }


def save_processor(out: Path) -> None:
    """Write the processor's files beside the tokenizer, in both places where readers look for the image processor."""
    processor = {"image_processor": IMAGE_PROCESSOR, "processor_class": "Lfm2VlProcessor"}
    for name, content in (("preprocessor_config.json", IMAGE_PROCESSOR), ("processor_config.json", processor)):
        (out / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
