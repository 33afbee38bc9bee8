"""What Qualcomm's HTP stores and computes, as ExecuTorch compiles for it.

What a chip's generation lacks of it depends on the recipe's `soc`: see `target.py`.
"""

from __future__ import annotations

from lfm2_export.qualcomm import soc
from lfm2_export.quantize.static_weights import METHODS
from lfm2_export.targets.capabilities import Arithmetic, Capabilities, Groups, OneOf, Stored, Whole, switch

CAPABILITIES = Capabilities(
    title="ExecuTorch `.pte` for Qualcomm's NPU",
    arithmetics=(
        Arithmetic(
            when="no int16 activations",
            static=False,
            embedding=(Stored(16, (None, "float16")),),
            others=(Stored(16, (None, "float16")),),
            caches=("float16",),
        ),
        Arithmetic(
            when="int16 activations throughout",
            static=True,
            embedding=(Stored(16, ("int16",)),),  # looked up in the activations' format
            others=(
                Stored(16, ("int16",)),
                Stored(8, ("int16",)),
                Stored(4, ("int16",), Groups(step=16)),  # LPBQ
            ),
            caches=("float32",),
        ),
    ),
    options={
        "soc": OneOf(soc.DEFAULT, soc.names, "the chip to compile for"),
        "prefill_chunk": Whole(32, 2, "tokens of a prefill call", high="window"),
        "weight_sharing": switch(True, "store weights once for both methods, where the chip can"),
        "allow_fallback": switch(False, "accept nodes outside the NPU"),
        "shards": Whole(None, 1, "into how many contexts the layers are cut; null: as few as fit", high="layers"),
    },
    methods=METHODS,
    unwritten={
        "experts": "the NPU's graph is static and would compute every expert for every token",
    },
    observers=("min-max", "percentile", "mse"),
)
