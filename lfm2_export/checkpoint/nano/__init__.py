"""The embedded checkpoints: a tiny LFM2, LFM3, LFM2-MoE and LFM2-VL, trained on the small questions of `tasks.py`.

Each has the layers, tokenizer layout, special tokens and chat template of its big siblings at about a
thousandth of the size, and it really answers: a broken mask, rotary table, convolution state or
quantizer shows up as wrong replies to held-out questions, in seconds and without a download.
"""

from pathlib import Path

PATH = Path(__file__).resolve().parent
# by the name that opens it
EMBEDDED = {
    "nano": PATH,
    "nano-lfm3": PATH.parent / "nano_lfm3",
    "nano-moe": PATH.parent / "nano_moe",
    "nano-vl": PATH.parent / "nano_vl",
}
