"""Tokenizer and chat template of a checkpoint or artifact folder, neither of them trusted.

Tokenizing is Hugging Face's `tokenizers`, whose files can make its Rust code panic and whose post-processor can emit
ids the model does not have: every call is guarded and every id is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from lfm2_export.checkpoint.config import LFM2Config, token_ids
from lfm2_export.checkpoint.json_file import read_json
from lfm2_export.checkpoint.shards import inside
from lfm2_export.checkpoint.template import ChatTemplate
from lfm2_export.errors import CheckpointError, one_line

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_GENERATION = "generation_config.json"
_MAX_TOKENIZER = 64 << 20
_MAX_SETTINGS = 16 << 20
_MAX_TEMPLATE = 1 << 20
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")

T = TypeVar("T")


class ChatTokenizer:
    """Text ↔ token ids, and messages → prompt."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        vocab_size: int,
        template: ChatTemplate | None,
        special: dict[str, str],
        eos_ids: Sequence[int],
        where: Path,
    ) -> None:
        """`special` are the variables a template knows the special tokens by; `where` names the file in errors."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._template = template
        self._special = special
        self._where = where
        self.eos_ids = tuple(eos_ids)

    @classmethod
    def load(cls, folder: Path, config: LFM2Config) -> ChatTokenizer | None:
        """Load the folder's tokenizer; None when it has none. Raise CheckpointError for a broken or an unfit one."""
        if not (folder / _TOKENIZER).is_file():
            return None
        path = inside(folder, _TOKENIZER)
        tokenizer = _load_tokenizer(path)
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if not 0 <= largest < config.vocab_size:
            raise CheckpointError(
                f"{path}: token ids up to {largest}; expected ids below vocab_size {config.vocab_size}"
            )
        settings = _optional_json(folder, _SETTINGS)
        special = {name: text for name in _SPECIAL if (text := _token_text(settings.get(name)))}
        if "bos_token" not in special and config.bos_token_id is not None:
            special["bos_token"] = tokenizer.id_to_token(config.bos_token_id) or ""
        template = _read_template(folder, settings)
        loaded = cls(tokenizer, config.vocab_size, template, special, _eos_ids(folder, config), path)
        if not loaded.eos_ids and (eos := tokenizer.token_to_id(special.get("eos_token", ""))) is not None:
            loaded.eos_ids = (eos,)
        loaded.encode("a", add_special_tokens=True)  # a post-processor may add ids that no vocabulary lists
        return loaded

    @property
    def has_template(self) -> bool:
        return self._template is not None

    @property
    def size(self) -> int:
        """How many tokens it has; a model may have room for more."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids; `add_special_tokens` adds what the post-processor adds (bos), which a template has already.

        CheckpointError when the tokenizer fails or yields an id that the model does not have.
        """
        encoding = _guarded(self._where, lambda: self._tokenizer.encode(text, add_special_tokens=add_special_tokens))
        ids = list(encoding.ids)
        if ids and max(ids) >= self._vocab_size:
            raise CheckpointError(f"{self._where}: yields token id {max(ids)}; expected ids below {self._vocab_size}")
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids; bytes that form no character become U+FFFD."""
        return str(_guarded(self._where, lambda: self._tokenizer.decode(list(ids), skip_special_tokens)))

    def stream(self, skip_special_tokens: bool = False) -> TextStream:
        """An incremental decoder for one reply; special tokens show, tool calls are made of them."""
        return TextStream(self._tokenizer, skip_special_tokens, self._where)

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The prompt for these messages, plain JSON values. CheckpointError when the template refuses or runs away."""
        if self._template is None:
            raise CheckpointError(f"{self._where.parent}: no chat template")
        return self._template.render(
            {
                "messages": list(messages),
                "tools": list(tools) if tools else None,
                "add_generation_prompt": add_generation_prompt,
                **self._special,
            }
        )


class TextStream:
    """A decoder, token by token, to text; a piece appears once its bytes form whole characters."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, where: Path) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)

    def step(self, token: int) -> str | None:
        """The new text, or None while a character is incomplete."""
        return _guarded(self._where, lambda: self._stream.step(self._tokenizer, token))


def _guarded(where: Path, call: Callable[[], T]) -> T:
    """`call()`, with any failure of the Rust library as a CheckpointError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, CheckpointError):
        raise
    except BaseException as error:  # pyo3's PanicException is not an Exception
        raise CheckpointError(f"{where}: not a working tokenizer: {one_line(error)}") from error


def _load_tokenizer(path: Path) -> Tokenizer:
    read_json(path, _MAX_TOKENIZER)  # size and syntax first: the Rust parser's errors are poor
    tokenizer = _guarded(path, lambda: Tokenizer.from_file(str(path)))
    # a length limit left in the file would shorten prompts without a word
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _eos_ids(folder: Path, config: LFM2Config) -> list[int]:
    """Where a reply ends, by the config or the generation config."""
    where = str(folder / _GENERATION)
    further = token_ids(_optional_json(folder, _GENERATION), config.vocab_size, where)
    return list(dict.fromkeys(config.eos_token_ids + further))


def _optional_json(folder: Path, name: str) -> dict[str, Any]:
    return read_json(inside(folder, name), _MAX_SETTINGS) if (folder / name).is_file() else {}


def _read_template(folder: Path, settings: dict[str, Any]) -> ChatTemplate | None:
    if (folder / _TEMPLATE).is_file():
        path = inside(folder, _TEMPLATE)
        if (size := path.stat().st_size) > _MAX_TEMPLATE:
            raise CheckpointError(f"{path}: {size} bytes, expected at most {_MAX_TEMPLATE}")
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), str(path))
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8 text") from error
    where = f"{folder / _SETTINGS}: chat_template"
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones: [{"name": "default", "template": "…"}, …]
        named = {str(entry.get("name")): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is None:
        return None
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise CheckpointError(f"{where}: expected text of at most {_MAX_TEMPLATE} characters")
    return ChatTemplate(template, where)


def _token_text(token: Any) -> str:
    """A special token is spelled as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""
