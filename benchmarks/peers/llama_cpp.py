"""llama.cpp's F16, Q8_0 and Q4_0 of the same weights, by its own converter and its own quantizer.

The converter comes with llama.cpp's sources, and those with the source distribution of llama-cpp-python: of the
installed version, so that converter and runtime agree.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.environment.extras import require
from lfm2_export.progress import Progress

_PACKAGE = "llama-cpp-python"
_HALVES = "F16"
_QUANTIZED = {"Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0", "Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0"}


def integers(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """Q4_0 and Q8_0."""
    return _build(checkpoint, cache, list(_QUANTIZED), progress)


def all_kinds(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """F16 as well."""
    return _build(checkpoint, cache, [*_QUANTIZED, _HALVES], progress)


def _build(checkpoint: Path, cache: Path, kinds: list[str], progress: Progress) -> list[Spec]:
    """GGUFs of those kinds. The F16 one that the others are made from stays only where it is one of them."""
    require("llama_cpp", _PACKAGE, "bench", "this benchmark, whose peer llama.cpp is,")
    version = metadata.version(_PACKAGE)
    files = {kind: cache / f"llama.cpp-{kind}.gguf" for kind in kinds}
    halves = cache / f"llama.cpp-{_HALVES}.gguf"
    missing = [kind for kind, path in files.items() if not path.exists()]
    if missing and not halves.exists():
        progress(f"llama.cpp {version}: converting")
        sources = _sources(cache.parent, version)
        finish([sys.executable, "-m", "benchmarks.peers.llama_cpp", str(sources), str(checkpoint), str(halves)])
    for kind in missing:
        if kind != _HALVES:
            progress(f"llama.cpp {version}: quantizing to {kind}")
            _quantize(halves, files[kind], _QUANTIZED[kind])
    if _HALVES not in kinds:
        halves.unlink(missing_ok=True)
    return [parse(str(path)).model_copy(update={"name": f"llama.cpp {kind}"}) for kind, path in files.items()]


def _sources(folder: Path, version: str) -> Path:
    """llama.cpp's source folder, downloaded once."""
    sources = folder / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    if not sources.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wanted = f"{_PACKAGE}=={version}"
            options = ["--no-deps", "--no-binary", ":all:", "--dest", temporary]
            finish([sys.executable, "-m", "pip", "download", "--quiet", *options, wanted])
            archive = next(Path(temporary).glob("*.tar.gz"))
            with tarfile.open(archive) as files:
                files.extractall(folder, filter="data")
    return sources


def _quantize(source: Path, target: Path, kind: str) -> None:
    """In a process of its own, which llama.cpp's memory and talk leave with it."""
    program = (
        "import sys, llama_cpp; options = llama_cpp.llama_model_quantize_default_params(); "
        "options.ftype = getattr(llama_cpp, sys.argv[3]); "
        "sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), options))"
    )
    partial = target.with_suffix(".partial")
    finish([sys.executable, "-c", program, str(source), str(partial), kind])
    partial.replace(target)


def _convert(sources: Path, checkpoint: Path, target: Path) -> None:
    """Run llama.cpp's converter, leaving the vocabulary out.

    It knows a tokenizer by a hash over its output, and refuses one it does not know; a benchmark needs none.
    """
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import runpy

    from conversion.lfm2 import LFM2Model

    LFM2Model.set_vocab = LFM2Model._set_vocab_none
    sys.argv = ["convert", str(checkpoint), "--outfile", str(target), "--outtype", "f16"]
    runpy.run_path(str(sources / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    _convert(*(Path(argument) for argument in sys.argv[1:]))
