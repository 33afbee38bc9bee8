"""Tokenizer and chat template of a checkpoint or artifact folder, neither of them trusted.

Tokenizing is Hugging Face's `tokenizers`; the template runs in Jinja2's immutable sandbox with the few helpers that
transformers gives its templates (`raise_exception`, `strftime_now`, `tojson`), within limits on time and size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from lfm2_export.checkpoint.config import LFM2Config, read_json
from lfm2_export.errors import CheckpointError

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_MAX_TOKENIZER = 64 << 20
_MAX_TEMPLATE = 1 << 20
_MAX_RENDERED = 4 << 20  # characters
_MAX_STEPS = 1_000_000  # loop turns and calls of one rendering
_COUNTED = "_counted"


class ChatTokenizer:
    """Text ↔ token ids, and messages → prompt."""

    def __init__(self, tokenizer: Tokenizer, template: str | None, bos: str, eos_ids: Sequence[int], where: Path) -> None:
        self._tokenizer = tokenizer
        self._source = template
        self._bos = bos
        self._where = where
        self.eos_ids = tuple(eos_ids)
        if template is not None:
            _ = self._template  # a broken template is refused when the folder is opened, not at the first chat

    @classmethod
    def load(cls, folder: Path, config: LFM2Config) -> ChatTokenizer | None:
        """None when the folder has no tokenizer. CheckpointError for one that is broken or does not fit the model."""
        path = folder / _TOKENIZER
        if not path.is_file():
            return None
        tokenizer = _load_tokenizer(path)
        if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= config.vocab_size:
            raise CheckpointError(f"{path}: token id {largest} does not fit the model's vocabulary of {config.vocab_size}")
        settings = read_json(folder / _SETTINGS, _MAX_TEMPLATE) if (folder / _SETTINGS).is_file() else {}
        bos = _token_text(settings.get("bos_token"))
        if not bos and config.bos_token_id is not None:
            bos = tokenizer.id_to_token(config.bos_token_id) or ""
        return cls(tokenizer, _read_template(folder, settings), bos, config.eos_token_ids, folder)

    @property
    def has_template(self) -> bool:
        return self._source is not None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids; `add_special_tokens` adds what the tokenizer's post-processor adds (bos). A template has it already."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def stream(self) -> TextStream:
        """An incremental decoder for one reply; special tokens show, tool calls are made of them."""
        return TextStream(self._tokenizer)

    def render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
    ) -> str:
        """The prompt for these messages. CheckpointError when the template refuses, fails or runs away."""
        values = {
            "messages": list(messages),
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos,
        }
        pieces, length = [], 0
        try:
            for piece in self._template.generate(values):
                pieces.append(piece)
                length += len(piece)
                if length > _MAX_RENDERED:
                    raise CheckpointError(f"{self._where}: the chat template renders more than {_MAX_RENDERED} characters")
        except CheckpointError:
            raise
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise CheckpointError(f"{self._where}: the chat template failed: {_one_line(error)}") from error
        return "".join(pieces)

    @property
    def _template(self) -> jinja2.Template:
        if self._source is None:
            raise CheckpointError(f"{self._where}: no chat template")
        try:
            return _Sandbox().compile_bounded(self._source)
        except (jinja2.TemplateError, RecursionError, ValueError) as error:
            raise CheckpointError(f"{self._where}: the chat template does not compile: {_one_line(error)}") from error


class TextStream:
    """Token by token to text; a piece appears once its bytes form whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def step(self, token: int) -> str | None:
        """The new text, or None while a character is incomplete."""
        return self._stream.step(self._tokenizer, token)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, which also bounds the work: so many loop turns and calls, no huge repetition, no power."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.filters |= {"tojson": _tojson, _COUNTED: self._counted}
        self.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
        self.left = _MAX_STEPS

    def compile_bounded(self, source: str) -> jinja2.Template:
        """Compile with every loop's iterable counted: nested loops are how a small text runs for hours."""
        tree = self.parse(source)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None)
        return self.from_string(tree)

    def call(self, context: Any, callee: Any, *args: Any, **kwargs: Any) -> Any:
        self._spend()
        return super().call(context, callee, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.TemplateError("** is not available in a chat template")
        for sized, count in ((left, right), (right, left)):
            if hasattr(sized, "__len__") and isinstance(count, int) and len(sized) * count > _MAX_RENDERED:
                raise jinja2.TemplateError("a repetition is too long")
        return super().call_binop(context, operator, left, right)

    def _counted(self, iterable: Iterable[Any]) -> Iterator[Any]:
        for item in iterable:
            self._spend()
            yield item

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise jinja2.TemplateError(f"more than {_MAX_STEPS} loop turns and calls")


def _tojson(value: Any, indent: int | None = None) -> str:
    """As transformers does it: no HTML escapes, no ASCII escapes, keys in their own order."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _load_tokenizer(path: Path) -> Tokenizer:
    read_json(path, _MAX_TOKENIZER)  # size and syntax first: the Rust parser's errors are poor
    try:
        return Tokenizer.from_file(str(path))
    except BaseException as error:  # pyo3's PanicException derives from BaseException
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise CheckpointError(f"{path}: not a tokenizer: {_one_line(error)}") from error


def _read_template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / _TEMPLATE
    if path.is_file():
        if path.stat().st_size > _MAX_TEMPLATE:
            raise CheckpointError(f"{path}: larger than {_MAX_TEMPLATE} bytes")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: not UTF-8 text") from error
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones: [{"name": "default", "template": "…"}, …]
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{folder / _SETTINGS}: chat_template is not text")
    return template


def _token_text(token: Any) -> str:
    """A special token is spelled as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
