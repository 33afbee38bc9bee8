"""What a search may choose from: the modules, and for each the weights that its target can store."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

from lfm2_export import targets
from lfm2_export.checkpoint.config import LFM2Config
from lfm2_export.errors import UsageError
from lfm2_export.graph.matrices import Matrix, matrices
from lfm2_export.graph.steps import layer_of
from lfm2_export.quantize.scheme import QuantizationRule, WeightScheme
from lfm2_export.quantize.size import matrix_bytes, share_read
from lfm2_export.targets.capabilities import Arithmetic

_FOUR: tuple[int, ...] = (128, 64, 32)  # groups that are tried, coarsest first
_EIGHT = (None, 32)  # only the coarsest that the target has: 8 bits lose next to nothing anyway


class Unit(NamedTuple):
    """Matrices that are decided together: one, an embedding and the head that shares its storage, a layer's experts."""

    matrices: tuple[Matrix, ...]
    options: tuple[WeightScheme, ...]
    arithmetic: Arithmetic
    share: Fraction = Fraction(1)  # which a decoded token reads of what is stored

    @property
    def paths(self) -> tuple[str, ...]:
        """The modules that they belong to."""
        return tuple(each.path for each in self.matrices)

    @property
    def layer(self) -> int | None:
        """The layer that they lie in; None for embedding and head."""
        return layer_of(self.matrices[0].path)

    def rules(self, option: WeightScheme) -> list[QuantizationRule]:
        """Return the recipe's line for each of them."""
        found = []
        for path, kind, _ in self.matrices:
            entry = next(each for each in self.arithmetic.entries(kind) if each.stores(option))
            found.append(QuantizationRule(match=path, weight=option, activation=entry.activations[0]))
        return found

    def stored(self, option: WeightScheme) -> int:
        """Return the bytes in the file."""
        apart = (each for each in self.matrices if each.kind != "head" or len(self.matrices) == 1)
        return sum(matrix_bytes(each.shape, QuantizationRule(match="*", weight=option)) for each in apart)

    def read(self, option: WeightScheme) -> int:
        """Return the bytes read for every decoded token."""
        return int(self.share * self.stored(option))


def units(config: LFM2Config, target: str) -> list[Unit]:
    """Return every matrix but gates, in the model's order. UsageError for a target without a choice of weights."""
    tunable = {name: targets.capabilities(name).dynamic for name in targets.names()}
    tunable = {name: arithmetic for name, arithmetic in tunable.items() if choices(arithmetic)}
    if target not in tunable:
        raise UsageError(f"tune chooses weights for {' and '.join(tunable)}, not for {target!r}")
    arithmetic, found = tunable[target], []
    for together in _together(config):
        options = tuple(option for option in choices(arithmetic) if _fits(arithmetic, together, option))
        found.append(Unit(together, options, arithmetic, _share(config, together)))
    return found


def kept_bytes(config: LFM2Config) -> int:
    """Return the bytes of what no unit decides, gates: they stay in float, and every token reads them."""
    return sum(matrix_bytes(each.shape, None) for each in matrices(config) if each.kind == "gate")


def _together(config: LFM2Config) -> list[tuple[Matrix, ...]]:
    """The matrices but gates, which stay in float, by what is decided at once."""
    found: dict[object, list[Matrix]] = {}
    for matrix in matrices(config):
        tied = config.tie_word_embeddings and matrix.kind in ("embedding", "head")
        group = "tied" if tied else ("experts", layer_of(matrix.path)) if matrix.kind == "expert" else matrix.path
        if matrix.kind != "gate":
            found.setdefault(group, []).append(matrix)
    return [tuple(group) for group in found.values()]


def _share(config: LFM2Config, together: tuple[Matrix, ...]) -> Fraction:
    """Of an embedding that is not the head as well a token reads a single row, of experts those it chose."""
    if all(each.kind == "embedding" for each in together):
        return Fraction(1, together[0].shape[0])
    return share_read(config, together[0].kind)


def choices(arithmetic: Arithmetic) -> tuple[WeightScheme, ...]:
    """Return the integer weights worth trying of those that products can have, coarsest first."""
    return (*_schemes(arithmetic, 4, _FOUR), *_schemes(arithmetic, 8, _EIGHT)[:1])


def _schemes(arithmetic: Arithmetic, bits: Literal[4, 8], groups: tuple[int | None, ...]) -> list[WeightScheme]:
    return [
        WeightScheme(bits=bits, group=group, scale=entry.scales[0])
        for entry in arithmetic.others
        for group in groups
        if entry.bits == bits and group in entry.groups
    ]


def _fits(arithmetic: Arithmetic, together: tuple[Matrix, ...], option: WeightScheme) -> bool:
    stored = all(any(entry.stores(option) for entry in arithmetic.entries(each.kind)) for each in together)
    return stored and all(each.shape[1] % (option.group or 1) == 0 for each in together)


def named(option: WeightScheme) -> str:
    """Return a name for people, such as "int4 g32"."""
    return f"int{option.bits} " + (f"g{option.group}" if option.group else "per row")
