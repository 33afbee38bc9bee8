"""What XNNPACK has kernels for, as ExecuTorch's delegate calls them."""

from __future__ import annotations

from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.targets.capabilities import ANY_GROUP, FLOAT32, Arithmetic, Capabilities, Groups, Stored, Whole

MAX_TOKENS = 256  # the activation arena grows with it
VERIFIED = 16
IMAGE_TOKENS = 256  # what LFM2-VL's processor makes of an image or a tile

CAPABILITIES = Capabilities(
    title="ExecuTorch `.pte`, computed by XNNPACK on CPUs",
    arithmetics=(
        Arithmetic(
            embedding=(Stored(FLOAT32), Stored(16), Stored(8, groups=ANY_GROUP), Stored(4, groups=ANY_GROUP)),
            others=(
                Stored(FLOAT32),
                Stored(16, ("float16",)),
                Stored(8, ("int8-token", None)),
                Stored(4, ("int8-token",), Groups(row=False, step=32), scales=("bfloat16",)),  # blockwise kernels
            ),
            caches=("float32", "bfloat16", "float16"),
        ),
    ),
    options={
        "max_tokens": Whole(MAX_TOKENS, 2, "the most tokens of one call"),
        "speculation": Whole(VERIFIED, 0, "the most tokens of a call that verifies a draft; 0: none does"),
        "image_tokens": Whole(IMAGE_TOKENS, IMAGE_TOKENS, "the most embeddings of an image"),
    },
    images=("lfm2_vl", "lfm3_vl"),
    vision={
        "int8": QuantizationRule(match="*", weight=WeightScheme(bits=8)),
        "int8-token": QuantizationRule(match="*", weight=WeightScheme(bits=8), activation="int8-token"),
        "fp16": QuantizationRule(match="*", weight=WeightScheme(bits=16)),
        "fp32": None,
    },
    forms=("explicit", "resident"),
    unwritten={
        "experts": "the delegate would compute every expert for every token, of which a router chooses a few: it has "
        "no operator that picks matrices while it runs",
    },
    slow_caches={
        "bfloat16": "makes long contexts slower on CPUs without bf16 arithmetic; in float32 they are fast on every CPU",
        "float16": "makes prompts and long contexts several times slower where ExecuTorch's attention has no fp16 "
        "arithmetic, as on x86-64; in float32 they are fast on every CPU",
    },
)
