"""The nano model's tokenizer, trained on its own questions.

Byte-level BPE with the splitting rule and the special tokens LFM2 uses, at LFM2's ids, so that chat
markers, the added beginning-of-text token and C++ tokenizer loaders meet what they will meet in the real
checkpoints; only the learned vocabulary is smaller.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lfm2_export.checkpoint.nano_vl.patches import IMAGE, IMAGE_END, IMAGE_START

SPECIAL_TOKENS = [
    f"<|{name}|>"
    for name in (
        "pad", "startoftext", "endoftext", "fim_pre", "fim_mid", "fim_suf", "im_start", "im_end",
        "tool_list_start", "tool_list_end", "tool_call_start", "tool_call_end",
        "tool_response_start", "tool_response_end",
    )
]  # fmt: skip
PAD, BOS, EOS = 0, 1, 7
_TILES = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11) if row * column <= 10]
IMAGE_TOKENS = [IMAGE, IMAGE_START, IMAGE_END, "<|img_thumbnail|>", *_TILES]  # by the names LFM2-VL has for them

# Contractions, words with one leading mark, numbers of up to three digits, marks, line ends, spaces.
SPLIT = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
))  # fmt: skip


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer over `texts`; fewer merges than asked for are left as unused ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin = SPECIAL_TOKENS[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, BOS)]
    )
    return tokenizer


def with_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """A tokenizer that has each of these words, of one piece with the space before it, as one token more.

    The new merges rank behind all others, so that whatever has none of these words in it is tokenized as before.
    """
    for word in words:
        document = json.loads(tokenizer.to_str())
        vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
        first, *others = tokenizer.encode(word, add_special_tokens=False).tokens
        for other in others:
            merges.append([first, other])
            first += other
            vocabulary.setdefault(first, len(vocabulary))
        tokenizer = Tokenizer.from_str(json.dumps(document))
    return tokenizer


def with_template(tokenizer: Tokenizer, template: Path, context: int) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers loads it, with its named special tokens and chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL_TOKENS[BOS],
        eos_token=SPECIAL_TOKENS[EOS],
        pad_token=SPECIAL_TOKENS[PAD],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        chat_template=template.read_text(),
    )
