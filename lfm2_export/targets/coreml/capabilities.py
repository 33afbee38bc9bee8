"""What Core ML stores and computes here: fp16 throughout, on whichever of Apple's processors it chooses."""

from __future__ import annotations

from lfm2_export.targets.capabilities import Arithmetic, Capabilities, OneOf, Stored, Whole

UNITS = ("all", "cpu_only", "cpu_and_gpu", "cpu_and_ne")

CAPABILITIES = Capabilities(
    title="ExecuTorch `.pte` for Apple's CPUs, GPUs and Neural Engine, through Core ML",
    arithmetics=(
        Arithmetic(
            embedding=(Stored(16, (None, "float16")),),
            others=(Stored(16, ("float16",)),),
            caches=("float16",),
        ),
    ),
    options={
        "prefill_chunk": Whole(32, 2, "tokens of a prefill call", high="window"),
        "compute_units": OneOf("all", UNITS, "the processors that Core ML may choose from"),
    },
    methods=("nearest",),
    unwritten={"experts": "the lowered program is static and would compute every expert for every token"},
)
