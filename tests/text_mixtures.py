"""Texts that pull a tokenizer apart: scripts, spaces, special tokens whole and cut, emoji, control characters."""

from __future__ import annotations

import random

# fmt: off
_SPECIAL = [
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool_list_start|>",
    "<|tool_call_end|>", "<|im_start", "im_end|>", "<|", "|>",
]
_PIECES = [
    "a", "B", "the ", "Hello", " world", "it's", "I'LL", "we'Ve", "'S", "'\u017f", "12345", "1", "\u0663\u0664",
    "\u00bd", "\u2167", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\r", "\u00a0", "\u2003", "\u3000", "\x85",
    "\u2028", "\u2029", "\u1680", "\v", "\f", "\x1c", "\x00", "\x01", "\x7f", "\x1b[0m", "\u00e9", "e\u0301",
    "\u00df", "\u017f", "\u212a", "\u0130", "\u0131", "\u00f1", "\u65e5\u672c\u8a9e", "\u4e2d\u6587\u3002",
    "\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\u0e44\u0e17\u0e22", "\u0939\u093f\u0928\u094d\u0926\u0940",
    "\u05e2\u05d1\u05e8\u05d9\u05ea", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1eb\U0001f1f7",
    "\u200b", "\u200d", "\ufeff", "\ufe0f", "\u202e", "\u2060", "\u180e", "\U0001d518", "\U00010348", "\U0010ffff",
    "\ue000", "\ufffd", "\ufffe", "\u0378", "\u01c5", "\u02b0", "\u00aa", "\U0001d7d9", "\u2460", ".", ",", "!?",
    "...", "--", "_", "__init__", "{", "}", "[", "]", "()", "$", "\u20ac", "+=", "://", "#", "@x", "\\n", '"', "'",
    "`", "``` ", "<", ">",
]
# fmt: on
_SCRIPTS = [(0x20, 0x7E), (0x80, 0x24F), (0x370, 0x1FFF), (0x2000, 0x2BFF), (0x3000, 0xD7FF)]
_ANY = [(0, 0xD7FF), (0xE000, 0x10FFFF)]


def mixtures(count: int, seed: int = 7) -> list[str]:
    """Return `count` texts of up to 14 pieces, the same for the same seed."""
    chosen = random.Random(seed)
    return ["".join(_piece(chosen) for _ in range(chosen.randint(0, 14))) for _ in range(count)]


def _piece(chosen: random.Random) -> str:
    kind = chosen.random()
    if kind < 0.12:
        return chosen.choice(_SPECIAL)
    if kind < 0.8:
        return chosen.choice(_PIECES)
    ranges = _SCRIPTS if kind < 0.9 else _ANY
    return "".join(chr(chosen.randint(*chosen.choice(ranges))) for _ in range(chosen.randint(1, 6)))
