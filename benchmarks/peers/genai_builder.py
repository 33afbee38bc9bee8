"""onnxruntime-genai's own builder on the same weights: int4 in blocks of 32, and int8."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.extras import require
from lfm2_export.model.load import open_checkpoint
from lfm2_export.progress import Progress

# accuracy level 4: inputs rounded to int8, its fast kernels, which ours use as well
_OPTIONS = {
    "int4": ["int4_block_size=32", "int4_accuracy_level=4"],
    "int8": ["int4_block_size=32", "int4_accuracy_level=4"],
}


def build(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """One folder per precision."""
    require("onnxruntime_genai", "onnxruntime-genai", "bench", "this benchmark, whose peer its builder is,")
    specs = []
    for precision, options in _OPTIONS.items():
        folder = cache / f"genai-{precision}"
        if not folder.exists():
            progress(f"onnxruntime-genai's builder: {precision}")
            _build(checkpoint, folder, precision, options)
        specs.append(parse(str(folder)).model_copy(update={"name": f"genai builder {precision}"}))
    return specs


def _build(checkpoint: Path, folder: Path, precision: str, options: list[str]) -> None:
    """The builder wants a tokenizer, which a checkpoint of random weights has not: nano's will do."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        source, target = Path(temporary, "source"), Path(temporary, "target")
        source.mkdir()
        for file in open_checkpoint("nano").folder.glob("tokenizer*"):
            shutil.copyfile(file, source / file.name)
        for file in checkpoint.iterdir():
            (source / file.name).unlink(missing_ok=True)
            (source / file.name).symlink_to(file.resolve())
        command = ["-m", "onnxruntime_genai.models.builder", "--input", str(source), "--output", str(target)]
        command += [
            "--precision",
            precision,
            "--execution_provider",
            "cpu",
            "--cache_dir",
            str(Path(temporary, "cache")),
        ]
        finish([sys.executable, *command, "--extra_options", *options])
        target.rename(folder)
