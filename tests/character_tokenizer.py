"""A tokenizer of which every token is a whole character, for random models that may say any of them."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<|pad|>", "<|startoftext|>", "<|endoftext|>", "<image>", "<|4|>", "<|5|>", "<|im_start|>", "<|im_end|>"]
CHARACTERS = ["Ġ", *(chr(code) for code in range(33, 127))]  # printable ASCII in byte-level spelling
SIZE = len(SPECIAL) + len(CHARACTERS)


def write_tokenizer(path: Path) -> Path:
    """Write it as a `tokenizer.json`, byte-level, with LFM2's special tokens at their ids, and return the path."""
    vocabulary = {text: number for number, text in enumerate(SPECIAL + CHARACTERS)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    made.save(str(path))
    return path
