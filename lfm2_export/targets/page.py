"""docs/targets.md, made from the targets' own tables: `python -m lfm2_export.targets.page > docs/targets.md`."""

from __future__ import annotations

from lfm2_export import targets
from lfm2_export.targets.capabilities import Arithmetic, Capabilities, OneOf, Stored, Whole, described, spelled

_INTRODUCTION = """\
# What each target can store and compute

A recipe is held against these tables before a weight is read; `lfm2-export tune` chooses from them. This page is made
from the same tables, by `python -m lfm2_export.targets.page`.

A matrix is an embedding, which is looked up in, a product's (the head's, a projection's, an MLP's), or an expert's in a
mixture of experts, whose matrices are all stored alike. A mixture's router is a product, and stays in float unless a
rule says `gate`.
"""


def page() -> str:
    """Return the whole page, Markdown."""
    return "\n".join([_INTRODUCTION, *(_section(name, targets.capabilities(name)) for name in targets.names())])


def _section(name: str, has: Capabilities) -> str:
    parts = [f"## {name}", f"{has.title}.", *map(_arithmetic, has.arithmetics)]
    parts.append(f"Forms: {', '.join(has.forms)}. Weights come to their integers by: {', '.join(has.methods)}.")
    if has.observers:
        parts[-1] += f" Ranges of activations are chosen by: {', '.join(has.observers)}."
    parts += [f"A {name} cache {slow}." for name, slow in has.slow_caches.items()]
    parts += [f"Not written: `{kind}`, {why}." for kind, why in has.unwritten.items()]
    if has.images:
        words = "; ".join(f"`{word}`: {described(rule)}" for word, rule in has.vision.items())
        parts.append(
            f"Matrices of an image part, by the recipe's `vision`: {words}. A group is smaller where it must be."
        )
    parts.append(_options(has))
    return "\n\n".join(parts) + "\n"


def _arithmetic(arithmetic: Arithmetic) -> str:
    rows = [
        f"| {matrix} | {entry.weights} | {_scales(entry)} "
        f"| {' or '.join(each or 'none' for each in entry.activations)} |"
        for matrix, entries in (
            ("embedding", arithmetic.embedding),
            ("product", arithmetic.others),
            ("expert", arithmetic.experts),
        )
        for entry in entries
    ]
    when = f"With {arithmetic.when}: KV" if arithmetic.when else "KV"
    table = "\n".join(["| matrix | weights | scale | activation |", "|---|---|---|---|", *rows])
    return f"{when} cache in {' or '.join(arithmetic.caches)}.\n\n{table}"


def _scales(entry: Stored) -> str:
    if entry.bits >= 16:
        return ""
    return "the target's own" if "int16" in entry.activations else ", ".join(entry.scales)


def _options(has: Capabilities) -> str:
    rows = [
        f"| `{name}` | {_values(option)} | {spelled(option.default)} | {option.what} |"
        for name, option in has.options.items()
    ]
    return "\n".join(["| option | values | default | |", "|---|---|---|---|", *rows])


def _values(option: OneOf | Whole) -> str:
    if isinstance(option, OneOf):
        return "a chip's name" if callable(option.values) else ", ".join(map(spelled, option.values))
    high = {"window": "the window", "layers": "the number of layers", None: ""}[option.high]
    return f"{option.low} to {high}" if high else f"from {option.low} on"


if __name__ == "__main__":
    print(page(), end="")
