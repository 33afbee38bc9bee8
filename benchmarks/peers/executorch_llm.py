"""ExecuTorch's own LFM2 recipe: `export_llm` with XNNPACK, 8da4w in groups of 32, int8 embedding, fused attention."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.peers.process import finish
from lfm2_export.bench.spec import Spec, parse
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.model.load import open_checkpoint
from lfm2_export.progress import Progress

WINDOWS = (2048, 8192)  # its prompt bound grows with its window, and its working memory with that
_CONVERT = "from executorch.examples.models.lfm2.convert_weights import main; main()"
_MODEL_CLASS = {1024: "lfm2_350m", 1536: "lfm2_700m", 2048: "lfm2_1_2b"}  # by hidden size
_OPTIONS = [
    'base.metadata="{\\"get_bos_id\\": 1, \\"get_eos_ids\\": [7]}"',
    "model.use_kv_cache=True",
    "model.use_sdpa_with_kv_cache=True",
    "model.dtype_override=fp32",
    "quantization.qmode=8da4w",
    "quantization.group_size=32",
    "quantization.embedding_quantize='8,0'",
    "backend.xnnpack.enabled=True",
    "backend.xnnpack.extended_ops=True",
]


def build(checkpoint: Path, cache: Path, longest: int, progress: Progress) -> list[Spec]:
    """One `.pte` per window: seven minutes and 2.7 GB each at 350M, on two cores."""
    config = open_checkpoint(str(checkpoint)).config
    weights, parameters = cache / "export_llm.pth", cache / "export_llm.json"
    specs = []
    for window in [WINDOWS[0], *(window for window in WINDOWS[1:] if longest > WINDOWS[0])]:
        path = cache / f"export_llm-{window}.pte"
        if not path.exists():
            if not weights.exists():
                progress("export_llm: converting the checkpoint")
                finish([sys.executable, "-c", _CONVERT, str(checkpoint), str(weights)])
                parameters.write_text(json.dumps(_parameters(config)))
            progress(f"export_llm: lowering for {window} tokens (minutes)")
            _export(config, weights, parameters, window, path)
        specs.append(parse(str(path)).model_copy(update={"name": f"export_llm 8da4w, window {window}"}))
    weights.unlink(missing_ok=True)
    return specs


def _export(config: LFM2Config, weights: Path, parameters: Path, window: int, path: Path) -> None:
    partial = path.with_name(f"partial-{path.name}")
    options = [
        f"base.model_class={_MODEL_CLASS[config.hidden_size]}",
        f"base.checkpoint={weights.resolve()}",
        f"base.params={parameters.resolve()}",
        *_OPTIONS,
        f"export.max_seq_length={window}",
        f"export.max_context_length={window}",
        f"export.output_name={partial.resolve()}",
    ]
    # in the cache folder: hydra leaves its logs where it runs
    finish([sys.executable, "-m", "executorch.extension.llm.export.export_llm", *options], folder=path.parent)
    partial.replace(path)


def _parameters(config: LFM2Config) -> dict[str, object]:
    """The model's shape in export_llm's words."""
    return {
        "dim": config.hidden_size,
        "hidden_dim": config.intermediate_size,
        "ffn_dim_multiplier": 1,
        "n_layers": len(config.layer_types),
        "layer_types": list(config.layer_types),
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "use_scaled_rope": False,
        "use_hf_rope": True,
        "use_qk_norm": True,
        "qk_norm_before_rope": True,
        "vocab_size": config.vocab_size,
    }
