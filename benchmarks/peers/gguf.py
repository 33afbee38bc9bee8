"""GGUF files of a checkpoint, by llama.cpp's own converter and its own quantizer.

The converter comes with llama.cpp's sources, and those with the source distribution of llama-cpp-python: of the
installed version, so that converter and runtime agree. All of it runs in processes of its own, which llama.cpp's
memory and talk leave with.
"""

from __future__ import annotations

import ctypes
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks.peers.process import finish
from lfm2_export.extras import require

PACKAGE = "llama-cpp-python"
_HERE = "benchmarks.peers.gguf"
_TAPS = "shortconv.conv.weight"  # of the convolutions, which nobody makes smaller
Importance = Mapping[str, np.ndarray]  # tensor → mean square of each of its inputs, `[columns] fp32`


def version() -> str:
    """Return the version of the installed llama-cpp-python. MissingDependencyError where there is none."""
    require("llama_cpp", PACKAGE, "bench", "this benchmark, whose peer llama.cpp is,")
    return metadata.version(PACKAGE)


def sources(folder: Path) -> Path:
    """Return llama.cpp's source folder below `folder`, downloaded once."""
    found = folder / f"llama_cpp_python-{version()}" / "vendor" / "llama.cpp"
    if not found.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            wanted = f"{PACKAGE}=={version()}"
            options = ["--no-deps", "--no-binary", ":all:", "--dest", temporary]
            finish([sys.executable, "-m", "pip", "download", "--quiet", *options, wanted])
            archive = next(Path(temporary).glob("*.tar.gz"))
            with tarfile.open(archive) as files:
                files.extractall(folder, filter="data")
    return found


def convert(sources: Path, checkpoint: Path, target: Path, kind: str) -> None:
    """Convert a checkpoint's folder to floats: `kind` f16, or f32 for one that shall lose nothing."""
    _new(target, lambda new: _call("convert", sources, checkpoint, new, kind))


def quantize(source: Path, target: Path, kind: str, importance: Importance | None = None) -> None:
    """Quantize a GGUF of floats to `kind`, such as Q4_K_M, with an importance matrix if there is one."""

    def made(new: Path) -> None:
        if importance is None:
            _call("quantize", source, new, kind)
            return
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, **importance)  # type: ignore[arg-type]  # numpy's stub takes its own option for any of them
            file.flush()
            _call("quantize", source, new, kind, file.name)

    _new(target, made)


def types(file: Path) -> dict[str, int]:
    """Return the bytes of all matrices of a file by the type that they are really stored in, such as Q6_K."""
    require("gguf", "gguf", "bench", "this benchmark, which reads GGUFs,")
    from gguf import GGUFReader

    found: Counter[str] = Counter()
    for tensor in GGUFReader(file).tensors:
        if sum(width > 1 for width in tensor.shape) > 1 and not tensor.name.endswith(_TAPS):
            found[tensor.tensor_type.name] += int(tensor.n_bytes)
    return dict(found)


def _call(*words: object) -> None:
    finish([sys.executable, "-m", _HERE, *map(str, words)])


def _new(target: Path, make: Callable[[Path], None]) -> None:
    partial = target.with_suffix(".partial")
    make(partial)
    partial.replace(target)


def _convert(sources: Path, checkpoint: Path, target: Path, kind: str) -> None:
    """Run llama.cpp's converter, leaving the vocabulary out.

    It knows a tokenizer by a hash over its output, and refuses one it does not know; a benchmark needs none.
    """
    sys.path[:0] = [str(sources), str(sources / "gguf-py")]
    import runpy

    from conversion.lfm2 import LFM2Model

    LFM2Model.set_vocab = LFM2Model._set_vocab_none
    sys.argv = ["convert", str(checkpoint), "--outfile", str(target), "--outtype", kind]
    runpy.run_path(str(sources / "convert_hf_to_gguf.py"), run_name="__main__")


def _quantize(source: Path, target: Path, kind: str, importance: Path | None = None) -> None:
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if importance is not None:
        entries = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(importance).items()}
        matrix = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()  # the last one, empty, ends it
        for place, (name, values) in zip(matrix, entries.items(), strict=False):
            place.name, place.size = name.encode(), values.size
            place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        options.imatrix = matrix
    sys.exit(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), options))


if __name__ == "__main__":
    _verb, *_words = sys.argv[1:]
    if _verb == "convert":
        _convert(Path(_words[0]), Path(_words[1]), Path(_words[2]), _words[3])
    else:
        _quantize(Path(_words[0]), Path(_words[1]), _words[2], *map(Path, _words[3:]))
