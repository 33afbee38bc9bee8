"""`manifest.json`: what an artifact is, what made it, what it needs, and what was proven of it."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1
Extent = Literal["full", "quick"]  # how much a proof measured
_STATE = re.compile(r"\.\d+(\.\w+)?$", re.ASCII)  # the end of a state tensor's name: its layer
_CACHES = ("key.", "value.")
_GROWS = "past_sequence_length"  # the extent of a cache where it varies from call to call
VERIFY = "verify"  # the method that verifies a draft, where it is one of its own
# the methods beside the decoder, which is then given embeddings, of an artifact that takes images
TOKEN_EMBEDDING, VISION_ENCODER = "embed_tokens", "vision_encoder"
TEXT_DECODER, TOKEN_LOOKUP = "text_decoder", "token_embedding"  # that decoder, and what embeds tokens, of a `.pte`
PROBE = "probe:"  # how the further outputs of a probed method begin; the point follows


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileEntry(_Strict):
    """One file of the folder, by its path relative to the manifest."""

    size: int = Field(ge=0)  # bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    for_proof: bool = False  # read by `parity` alone: an app needs it not


class TensorSpec(_Strict):
    """One input or output of a method. A dimension is a number, or a name where it may vary per call."""

    name: str
    dtype: str
    shape: list[int | str]
    written: bool = False  # an input that the call writes into: the caller's own state, changed in place


def point_name(path: str, side: Literal["in", "out"]) -> str:
    """Return the name, in traces and probed methods, of what goes into or comes out of a module of the decoder."""
    return f"{path}:{side}"


class Delegation(_Strict):
    """The places of a method's operators: calls into the delegate, operators inside it, operators left outside."""

    backend: str
    calls: int
    delegated: int
    fallback: dict[str, int]  # operator → count, sorted by name
    cuts: int = 0  # copies of an activation from one shard of the model to the next: no operator fell back


class MethodSpec(_Strict):
    """One entry point of the artifact and the file that holds it."""

    name: str
    file: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    max_tokens: int  # most tokens a single call may take
    delegation: Delegation | None = None

    def state_bytes(self, window: int) -> tuple[int, int]:
        """Return the bytes of one conversation's state: of caches of the whole window, and of all that is shorter."""
        context = fixed = 0
        for spec in self.inputs:
            if not _STATE.search(spec.name):
                continue
            varying = {"batch_size": 1, _GROWS: window}
            sizes = [size if isinstance(size, int) else varying.get(size, 1) for size in spec.shape]
            size = math.prod(sizes) * (4 if spec.dtype == "float32" else 2)
            if spec.name.startswith(_CACHES) or _GROWS in spec.shape:
                context += size
            else:
                fixed += size
        return context, fixed

    @property
    def probes(self) -> list[str]:
        """The names of the outputs that a probed method has behind its own; none of an ordinary artifact's."""
        return [output.name for output in self.outputs if output.name.startswith(PROBE)]


class Npu(_Strict):
    """The Qualcomm chip that an artifact was compiled for. Another chip needs another export."""

    soc: str  # e.g. "SM8650"
    htp: int  # generation of its NPU
    shards: int = 1  # contexts that each method runs through, one after the other
    weights_shared: bool  # whether decode and prefill read one copy of the weights
    reproducible: Literal[False] = False  # Qualcomm's compiler writes the time, and unset bytes
    emulator_file: str  # what was proven: the phone's own file, or its twin where the emulator cannot load that


class AdapterSource(_Strict):
    """The two parts of a checkpoint that was merged from a LoRA adapter and its base."""

    weights_sha256: str  # of adapter_model.safetensors
    base: str  # folder name, hub id, or an embedded model's
    base_revision: str | None = None
    base_sha256: str  # as `Source.weights_sha256`


class Source(_Strict):
    """The checkpoint the artifact was made from."""

    name: str  # folder name, hub id, or an embedded model's
    revision: str | None = None  # hub commit
    weights_sha256: str  # digest over every tensor's name, shape, dtype and bytes
    images_sha256: str | None = None  # that of the image part, where it was exported
    random_weights: bool = False  # made by `lfm2-export init`: quality figures say nothing
    config: dict[str, Any]  # resolved architecture
    adapter: AdapterSource | None = None


class GateResult(_Strict):
    """One gate: a measured value against its limit, or the reason it was not measured.

    The limit is the recipe's unless a reason beside the verdict says otherwise.
    """

    name: str
    runtime: str
    status: Literal["pass", "fail", "skipped"]
    value: float | None = None
    limit: float | None = None
    reason: str | None = None


class Manifest(_Strict):
    """The whole contract of an artifact folder."""

    schema_version: Literal[1] = 1
    files: dict[str, FileEntry]
    source: Source
    recipe: dict[str, Any]  # in full, overrides applied
    target: str
    form: Literal["explicit", "resident"]
    transport: Literal["slice", "inplace"]  # how new state reaches the caller (inplace for the resident form)
    cache_layout: Literal["heads-time", "time-heads"]  # [B, kv_heads, S, D] or [B, S, kv_heads, D]
    window: int  # tokens
    chat: bool  # whether tokenizer and chat template came along
    methods: list[MethodSpec]
    speculation: int = 0  # the most tokens of a call that verifies a draft; 0: drafts cannot be verified
    quantization: dict[str, str]  # module class → e.g. "int4 g32, int8-token activations"
    versions: dict[str, str]  # of everything that took part in the export
    runtime_requirement: str  # what an app must link, e.g. "executorch==1.5.1"
    npu: Npu | None = None
    effort: Extent = "full"  # of the proof, where there is one
    parity: list[GateResult] = []  # empty: not proven
    unproven: str | None = None  # why these gates are a stand-in's, and its own runtime has not been asked

    @property
    def takes_images(self) -> bool:
        """Return whether the image part of a vision-language model is in it."""
        return any(method.name == VISION_ENCODER for method in self.methods)

    @property
    def verdict(self) -> str:
        """Return what was proven, in a few words; a folder in which a gate failed is not written."""
        if not self.parity or any(gate.status == "fail" for gate in self.parity):
            return "not proven"
        if self.unproven is not None:
            return f"not proven on the machine that made it ({self.unproven})"
        return "proven" if self.effort == "full" else f"proven ({self.effort} effort)"

    @property
    def shipped(self) -> dict[str, FileEntry]:
        """Return every file but those that only a proof reads."""
        return {name: entry for name, entry in self.files.items() if not entry.for_proof}

    @property
    def shipped_bytes(self) -> int:
        return sum(entry.size for entry in self.shipped.values())
