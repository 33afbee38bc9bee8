"""How many bytes a rule makes of a matrix: integers and scales as targets store them."""

from __future__ import annotations

from fractions import Fraction

from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.graph.matrices import MatrixClass, matrices
from lfm2_export.model.state import FLOAT_DTYPES
from lfm2_export.quantize.scheme import QuantizationRule, Rules, rule_for

# bytes of fp32 that integers are turned back to, once: all of LFM2-1.2B and half of 2.6B, whose proof then fits 16 GB
ROOM = 5_000_000_000


def matrix_bytes(shape: tuple[int, int], rule: QuantizationRule | None) -> int:
    """Return the bytes of one matrix `(rows, columns)`; fp32 where no rule fits."""
    rows, columns = shape
    if rule is None or rule.weight is None:
        return 4 * rows * columns
    if rule.weight.bits == 16:
        return 2 * rows * columns
    scales = rows * (columns // (rule.weight.group or columns))
    return rows * columns * rule.weight.bits // 8 + scales * FLOAT_DTYPES[rule.weight.scale].itemsize


def share_read(config: LFM2Config, kind: MatrixClass) -> Fraction:
    """Return which share of such matrices a token's products read: of experts those it chose, of others all."""
    return Fraction(config.num_experts_per_tok, config.num_experts) if kind == "expert" else Fraction(1)


def is_shared(config: LFM2Config, rules: Rules) -> bool:
    """Return whether embedding and head are stored once."""
    table, head = (rule_for(path, kind, rules) for path, kind in (("embed_tokens", "embedding"), ("lm_head", "head")))
    return config.tie_word_embeddings and (table and table.weight) == (head and head.weight)


def model_bytes(config: LFM2Config, rules: Rules) -> int:
    """Return the bytes of all matrices, without norms and taps; a shared embedding and head count once."""
    shared = is_shared(config, rules)
    return sum(
        matrix_bytes(shape, rule_for(path, kind, rules))
        for path, kind, shape in matrices(config)
        if not (shared and kind == "embedding")
    )
