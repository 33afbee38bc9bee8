"""The program that renders a chat template, run by `template.py` as a process of its own.

A chat template is a program that came with somebody's weights. Jinja2's sandbox keeps it from touching anything, but
not from asking for a billion iterations or a terabyte of spaces; the operating system does that, to a process that may
be lost. Standard input and output carry one JSON document a line: first `{"source": …}`, then the variables of each
rendering; answers are `{"ready": true}`, `{"text": …}` or `{"error": …, "refused": whether the template said so}`.
It imports nothing of this project, so that it starts fast.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class RefusalError(Exception):
    """The template's own objection to a conversation (`raise_exception`)."""


class GenerationBlock(Extension):
    """The tag `{% generation %}`: it marks the assistant's text for training; rendered, it is only its content."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it so, and a ClassVar would not match

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class Sandbox(ImmutableSandboxedEnvironment):
    """Transformers' dialect of Jinja2. What is unsafe fails at once and does not pass for an empty string."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock])
        self.filters["tojson"] = to_json
        self.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise SecurityError(f"access to {attribute!r} of {type(obj).__name__} is unsafe")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja2's own escapes HTML and sorts keys; a prompt wants neither."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def refuse(message: str) -> NoReturn:
    raise RefusalError(message)


def limit_memory(size: int) -> None:
    """No more than `size` bytes for this process, where the system knows such a limit."""
    if sys.platform == "win32":
        return
    import resource

    for kind, value in ((resource.RLIMIT_AS, size), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS refuses the first
            continue


def limit_time(seconds: int) -> None:
    """Processor seconds until the system ends this process, where it knows such a limit; 0 takes it back."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)


def render(template: jinja2.Template, values: dict[str, Any], longest: int) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(values):
        pieces.append(piece)
        length += len(piece)
        if length > longest:
            raise ValueError(f"it renders more than {longest} characters")
    return "".join(pieces)


def answer(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what `work()` returns, or why it failed. A template can raise anything."""
    try:
        return work()
    except RefusalError as error:
        return {"error": str(error), "refused": True}
    except Exception as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return {"error": (str(error) or type(error).__name__) + line, "refused": False}


def main(seconds: int, memory: int, longest: int) -> None:
    limit_memory(memory)
    template: jinja2.Template | None = None

    def reply(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal template
        if template is None:
            template = Sandbox().from_string(values["source"])
            return {"ready": True}
        return {"text": render(template, values, longest)}

    for line in sys.stdin.buffer:
        values = json.loads(line)
        limit_time(seconds)
        document = answer(partial(reply, values))
        limit_time(0)
        sys.stdout.buffer.write(json.dumps(document).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
