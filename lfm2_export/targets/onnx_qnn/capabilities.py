"""What onnxruntime's QNN provider, and the tool that quantizes for it, store and compute."""

from __future__ import annotations

from lfm2_export.qualcomm import soc
from lfm2_export.targets.capabilities import Arithmetic, Capabilities, OneOf, Stored, Whole, switch

CAPABILITIES = Capabilities(
    title="ONNX for Qualcomm's NPU, through onnxruntime",
    arithmetics=(
        Arithmetic(
            when="no int16 activations",
            static=False,
            embedding=(Stored(16),),
            others=(Stored(16, ("float16",)),),
            caches=("float32",),
        ),
        Arithmetic(
            when="int16 activations throughout",
            static=True,
            embedding=(Stored(16, ("int16",)),),  # looked up in the activations' format
            others=(Stored(8, ("int16",)), Stored(4, ("int16",))),  # the provider computes groups wrongly beside int16
            caches=("float32",),  # at the border
        ),
    ),
    options={
        "soc": OneOf(soc.DEFAULT, soc.names, "the chip to compile for"),
        "prefill_chunk": Whole(32, 2, "rows of a prefill call", high="window"),
        "context_binary": switch(False, "compile the graphs for the chip as well"),
    },
    methods=("nearest",),
    unwritten={
        "experts": "the NPU's graph is static and would compute every expert for every token",
    },
    observers=("min-max", "percentile"),
)
