"""What onnxruntime's operators store and compute."""

from __future__ import annotations

from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.targets.capabilities import FLOAT32, Arithmetic, Capabilities, Groups, OneOf, Stored, Whole, switch

_GROUPS = Groups(row=False, step=16, doubled=True)  # of MatMulNBits and GatherBlockQuantized

CAPABILITIES = Capabilities(
    title="ONNX for onnxruntime, its genai library and transformers.js",
    arithmetics=(
        Arithmetic(
            when="options.precision: float32",
            options={"precision": "float32"},
            embedding=(Stored(FLOAT32), Stored(8, groups=_GROUPS), Stored(4, groups=_GROUPS)),
            others=(
                Stored(FLOAT32),
                Stored(8, ("int8-block", None), _GROUPS),
                Stored(4, ("int8-block", None), _GROUPS),
            ),
            experts=(
                Stored(FLOAT32),
                Stored(8, ("int8-block",), _GROUPS),  # QMoE has no other products for 8 bits
                Stored(4, ("int8-block", None), _GROUPS),
            ),
            caches=("float32", "float16"),
        ),
        Arithmetic(
            when="options.precision: float16",
            options={"precision": "float16"},
            embedding=(Stored(16), *(Stored(bits, groups=_GROUPS, scales=("float16",)) for bits in (8, 4))),
            others=(
                Stored(16, ("float16",)),
                *(Stored(bits, ("float16",), _GROUPS, scales=("float16",)) for bits in (8, 4)),
            ),
            caches=("float16",),
        ),
    ),
    images=("lfm2_vl", "lfm3_vl"),
    vision={
        "int8": QuantizationRule(match="*", weight=WeightScheme(bits=8, group=128)),
        "fp16": QuantizationRule(match="*", weight=WeightScheme(bits=16)),
        "fp32": None,
    },
    options={
        "precision": OneOf("float32", ("float32", "float16"), "of everything that is no integer"),
        "conv": OneOf(
            "channels_last",
            ("channels_last", "fused", "plain"),
            "CausalConvWithState over channels last (needs onnxruntime 1.30) or first (1.25.1; a decode step takes 3 % "
            "longer), or plain operators (10 % longer)",
        ),
        "speculation": Whole(16, 0, "the most tokens of a call that verifies a draft; 0: none does"),
        "fused_embedding": switch(False, "read a quantized embedding with GatherBlockQuantized"),
    },
)
