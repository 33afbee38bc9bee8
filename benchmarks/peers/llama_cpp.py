"""llama.cpp's F16, Q8_0 and Q4_0 of the same weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import gguf
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.progress import Progress

_HALVES = "F16"
_QUANTIZED = ["Q4_0", "Q8_0"]


def integers(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """Q4_0 and Q8_0."""
    return _build(checkpoint, cache, _QUANTIZED, progress)


def all_kinds(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """F16 as well."""
    return _build(checkpoint, cache, [*_QUANTIZED, _HALVES], progress)


def _build(checkpoint: Path, cache: Path, kinds: list[str], progress: Progress) -> list[Spec]:
    """GGUFs of those kinds. The F16 one that the others are made from stays only where it is one of them."""
    version = gguf.version()
    files = {kind: cache / f"llama.cpp-{kind}.gguf" for kind in kinds}
    halves = cache / f"llama.cpp-{_HALVES}.gguf"
    missing = [kind for kind, path in files.items() if not path.exists()]
    if missing and not halves.exists():
        progress(f"llama.cpp {version}: converting")
        gguf.convert(gguf.sources(cache.parent), checkpoint, halves, "f16")
    for kind in missing:
        if kind != _HALVES:
            progress(f"llama.cpp {version}: quantizing to {kind}")
            gguf.quantize(halves, files[kind], kind)
    if _HALVES not in kinds:
        halves.unlink(missing_ok=True)
    return [parse(str(path)).model_copy(update={"name": f"llama.cpp {kind}"}) for kind, path in files.items()]
