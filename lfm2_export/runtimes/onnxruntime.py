"""onnxruntime on the CPU, driving an `onnx` artifact whose KV cache and conv states stay in one set of buffers.

Past and present are bound to the same memory, so a step writes its keys in place and copies nothing out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.manifest import PROBE, Manifest, MethodSpec, TensorSpec
from lfm2_export.errors import ArtifactError, MissingDependencyError, one_line
from lfm2_export.runtimes._agreement import check_graph
from lfm2_export.runtimes._float_activations import in_float
from lfm2_export.runtimes._huge_pages import HugePages
from lfm2_export.runtimes._images import Images
from lfm2_export.runtimes._places import SeeingSession
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import (
    DraftCost,
    Snapshot,
    check_draft,
    check_kept,
    check_room,
    check_snapshot,
)

_GROWS = "past_sequence_length"  # the extent of a cache
_ROWS, _STATES = "num_logits_to_keep", "num_states_to_keep"  # inputs that only a `verify` gives
_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
_QUIET = 3  # onnxruntime's log level: errors only


class OnnxRuntime(Runtime):
    """The library on the CPU, in this process."""

    name = "onnxruntime"
    targets = ("onnx",)
    taken = "first"
    takes_images = True

    def version(self) -> str:
        """Return the version of the installed onnxruntime. MissingDependencyError if there is none."""
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime is not installed; pip install onnxruntime") from error
        return str(onnxruntime.__version__)

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> OnnxRuntimeSession:
        """Load an artifact for one conversation. ArtifactError when onnxruntime refuses the file."""
        return OnnxRuntimeSession(folder, manifest, threads=threads)

    def load_library(self) -> None:
        """Import onnxruntime, and onnx, which the file is read with before."""
        super().load_library()
        import onnx  # noqa: F401  its memory counts as a library's

    def weights_session(self, folder: Path, manifest: Manifest) -> OnnxRuntimeSession:
        """Load the same file with activations and states in fp32, its matrices taking their inputs unrounded.

        Rounding is chaotic: one input that falls the other way moves the next layer's, and soon the difference is as
        large as rounding itself. Without it the file must equal the weight-only eager model to fp32's last digits.
        """
        return OnnxRuntimeSession(folder, manifest, float_activations=True)


RUNTIME = OnnxRuntime()


class OnnxRuntimeSession(SeeingSession):
    """One conversation, batch 1 (see `Session`)."""

    runtime = "onnxruntime"
    pads = True
    draft_cost = DraftCost(0, 0.23, 8, 0)  # of its int4 products, which gain less from further rows
    _providers: Sequence[str] = ("CPUExecutionProvider",)
    _verifies_here = True
    _turns_int8_in_every_call = True  # to fp32, the whole matrix, where activations are in float: a second at 350M

    def __init__(
        self, folder: Path, manifest: Manifest, float_activations: bool = False, threads: int | None = None
    ) -> None:
        self.version = RUNTIME.version()
        import onnxruntime

        method = manifest.methods[0]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: its own choice
        self._configure(options)

        def opened(method: MethodSpec) -> Any:
            path = folder / method.file
            check_graph(path, method, manifest)
            try:
                once = self._turns_int8_in_every_call
                with in_float(path, once) if float_activations else nullcontext(path) as file:
                    return onnxruntime.InferenceSession(file, options, providers=list(self._providers))
            except Exception as error:  # onnxruntime's exceptions have no common base of their own
                raise ArtifactError(f"{path}: onnxruntime {self.version} cannot load it: {one_line(error)}") from error

        pages = HugePages()
        self._session = opened(method)
        pages.adopt()
        self._images: Images | None = Images(folder, manifest, opened) if manifest.takes_images else None
        self.takes_images = self._images is not None
        self.window = manifest.window
        self._position = 0
        self._logits = np.zeros((1, 1, _width(method.outputs, "logits")), dtype=np.float32)
        states = sorted((spec for spec in method.inputs if spec.name.startswith("past_")), key=_layer)
        # what a call replaces whole, by its input's name: where its axis of tokens is; 1 in what slides
        self._axes = {spec.name: 2 if _is_conv(spec.name) else 1 for spec in states if _GROWS not in spec.shape}
        types = {given.name: _NUMPY[given.type] for given in self._session.get_inputs()}
        self._buffers = {spec.name: np.zeros(_shape(spec, self.window), dtype=types[spec.name]) for spec in states}
        self._probes = method.probes
        self._binding = self._session.io_binding()
        self._bind_buffers()
        self.verifies = manifest.speculation if self._verifies_here else 0
        self._verified = 0
        self._columns: dict[str, np.ndarray] = {}  # of the last `verify`

    @property
    def position(self) -> int:
        return self._position

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        """Go on with a chunk; padding ends where the window ends, since padded keys are written too."""
        count = len(tokens)
        check_room(self._position, count, self.window, self._logits.shape[2], tokens)
        self._verified = 0
        rows = min(max(count, pad_to or 0), self.window - self._position)
        for name, array in self._call(tokens, rows).items():
            self._binding.bind_cpu_input(name, array)
        for name in self._probes:
            self._binding.bind_output(name, "cpu")  # anew: it would keep the last call's shape
        self._session.run_with_iobinding(self._binding)
        self._position += count
        return self._logits[0, 0].copy()

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        """Keys and values go into the buffers; what a call replaces is read there, its columns returned beside them."""
        if not self.verifies:
            return super().verify(tokens)  # refuses
        check_draft(len(tokens), self.verifies)
        count, vocab = len(tokens), self._logits.shape[2]
        check_room(self._position, count, self.window, vocab, tokens)
        self._verified = 0
        # made by onnxruntime: it refuses a buffer of more rows than the one that the graph declares, for genai
        self._verifying.bind_output("logits", "cpu")
        for name, axis in self._axes.items():
            shape = [*self._buffers[name].shape]
            shape[axis] += count - 1  # as many states, each a column further on
            self._columns[name] = np.empty(shape, dtype=self._buffers[name].dtype)
            _bind_output(self._verifying, present_name(name), self._columns[name])
        _bind_count(self._verifying, _STATES, count)
        _bind_count(self._verifying, _ROWS, count)
        for name, array in self._call(tokens, count).items():
            self._verifying.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._verifying)
        self._verified = count
        logits: np.ndarray = self._verifying.get_outputs()[0].numpy()
        return logits[0]

    def keep(self, count: int) -> None:
        """What was let go of lies in the caches behind the position, where no call looks."""
        check_kept(count, self._verified)
        for name, axis in self._axes.items() if count else ():
            buffer = self._buffers[name]
            buffer[...] = self._columns[name].take(range(count - 1, count - 1 + buffer.shape[axis]), axis)
        self._position += count
        self._verified = 0

    def probes(self) -> dict[str, np.ndarray]:
        shown = self._binding.copy_outputs_to_cpu()[-len(self._probes) :] if self._probes else []
        values = zip(self._probes, shown, strict=True)
        return {name.removeprefix(PROBE): array.astype(np.float32) for name, array in values}

    def reset(self) -> None:
        """What is replaced whole starts from zero; of a cache attention sees only columns below the position."""
        self._position = self._verified = 0
        for name in self._axes:
            self._buffers[name].fill(0)

    def state(self) -> Snapshot:
        filled = {self._contract_name(name): self._filled(name, self._position) for name in self._buffers}
        return Snapshot(self._position, {name: part.astype(np.float32) for name, part in filled.items()})

    def restore(self, snapshot: Snapshot) -> None:
        shapes = {self._contract_name(name): self._filled(name, self.window).shape for name in self._buffers}
        check_snapshot(snapshot, shapes)
        self._position, self._verified = snapshot.position, 0
        for name in self._buffers:
            self._filled(name, snapshot.position)[...] = snapshot.tensors[self._contract_name(name)]

    def _configure(self, options: Any) -> None:
        options.log_severity_level = _QUIET
        options.use_deterministic_compute = True

    def _call(self, tokens: Sequence[int], rows: int) -> Mapping[str, np.ndarray]:
        """What a call of `rows` rows is given beside the state; those behind the tokens are padding."""
        count, start = len(tokens), self._position
        mask = np.ones((1, start + rows), dtype=np.int64)
        mask[:, start + count :] = 0
        ids = np.array([[*tokens, *[0] * (rows - count)]], dtype=np.int64)
        return {
            **({"input_ids": ids} if self._images is None else {"inputs_embeds": self._images.embedded(ids)}),
            "attention_mask": mask,
            "position_ids": np.arange(start, start + rows, dtype=np.int64)[None],
        }

    def _filled(self, name: str, position: int) -> np.ndarray:
        """The part of a buffer that is state: the last L-1 columns of a conv state, `position` columns of a cache."""
        buffer = self._buffers[name]
        if self._axes.get(name) == 1:
            return buffer.transpose(0, 2, 1)
        return buffer[:, :, 1:] if _is_conv(name) else buffer[:, :, :position]

    def _contract_name(self, name: str) -> str:
        """`past_conv.3` → `conv_state.3`; `past_key_values.5.key` → `key.5` or, where it slides, `sliding_key.5`."""
        _, layer, *kind = name.split(".")
        sliding = "sliding_" if kind and name in self._axes else ""
        return f"{sliding}{kind[0]}.{layer}" if kind else f"conv_state.{layer}"

    def _bind_buffers(self) -> None:
        """Bind each state buffer as past and present at once; both conv and attention read before they write."""
        for name, buffer in self._buffers.items():
            _bind_input(self._binding, name, buffer)
            _bind_output(self._binding, present_name(name), buffer)
        self._bind_logits()

    def _bind_logits(self) -> None:
        _bind_output(self._binding, "logits", self._logits)

    @cached_property
    def _verifying(self) -> Any:
        """The binding of a `verify` call, but for what depends on the number of its tokens."""
        binding = self._session.io_binding()
        binding.bind_output("logits", "cpu")
        for name, buffer in self._buffers.items():
            _bind_input(binding, name, buffer)
            if name not in self._axes:
                _bind_output(binding, present_name(name), buffer)
        return binding


def _is_conv(name: str) -> bool:
    return name.startswith("past_conv.")


def _bind_input(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def _bind_count(binding: Any, name: str, count: int) -> None:
    """Bind an input that a caller may leave out, which `bind_cpu_input` does not know."""
    from onnxruntime import OrtValue

    binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(np.array(count, dtype=np.int64)))


def _bind_output(binding: Any, name: str, array: np.ndarray) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def present_name(name: str) -> str:
    """`past_conv.3` → `present_conv.3`; `past_key_values.5.key` → `present.5.key`."""
    kind, _, rest = name.partition(".")
    return f"present.{rest}" if kind == "past_key_values" else f"present{kind.removeprefix('past')}.{rest}"


def _layer(spec: TensorSpec) -> int:
    """The layer that a state belongs to: the graph takes what slides last."""
    number = spec.name.split(".")[1:2]
    return int(number[0]) if number and number[0].isdecimal() else 0


def _shape(spec: TensorSpec, window: int) -> list[int]:
    """A state's buffer for one conversation: batch 1, the whole window."""
    varying = {"batch_size": 1, _GROWS: window}
    return [size if isinstance(size, int) else varying[size] for size in spec.shape]


def _width(outputs: list[TensorSpec], name: str) -> int:
    return next(int(spec.shape[-1]) for spec in outputs if spec.name == name)
