"""onnxruntime-genai, driving the same `onnx` artifact by its `genai_config.json`, as an app built on it would.

Its LFM2 cache can neither be read nor rewound, so there is no `state()` here; a new conversation is a new generator.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.errors import ArtifactError, MissingDependencyError, UsageError, one_line
from lfm2_export.runtimes._agreement import check_graph
from lfm2_export.runtimes.runtime import Runtime
from lfm2_export.runtimes.session import Session, Snapshot, check_room

_CONFIG = "genai_config.json"
_MOST_BYTES = 1 << 20
_ROWS, _ALL = "num_logits_to_keep", 0  # an input of the graph that genai does not give, and what asks for every row
# The library can be told there to load further code; what is not known to be harmless is refused.
_KNOWN = {
    (): {"model", "search"},
    ("model",): {"type", "context_length", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "decoder"},
    ("model", "decoder"): {
        *("session_options", "filename", "head_size", "hidden_size", "num_attention_heads", "num_hidden_layers"),
        *("num_key_value_heads", "layer_types", "conv_cache_size", "inputs", "outputs"),
    },
    ("model", "decoder", "session_options"): {"log_id", "provider_options"},
}


class Genai(Runtime):
    """The library on the CPU. It loads the file as it is, with activations rounded as the recipe says."""

    name = "genai"
    targets = ("onnx",)
    reads = 16  # as many rows of logits are in memory

    def version(self) -> str:
        """Return the version of the installed onnxruntime-genai. MissingDependencyError if there is none."""
        try:
            import onnxruntime_genai
        except ImportError as error:
            hint = "pip install 'lfm2-export[genai]'"
            raise MissingDependencyError(f"onnxruntime-genai is not installed; {hint}") from error
        return str(onnxruntime_genai.__version__)

    def refusal(self, manifest: Manifest) -> str | None:
        """Return why the library does not run it: it needs a class for the model, and 0.18.0 has none for LFM3."""
        if manifest.target == "onnx" and manifest.source.config.get("model_type") == "lfm3":
            return "onnxruntime-genai 0.18.0, the newest tried, has no class for lfm3 (docs/onnx.md#lfm3)"
        return super().refusal(manifest)

    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> GenaiSession:
        """Load an artifact for one conversation.

        Raises ArtifactError when the library refuses it, or its config asks for more than to run the model.
        """
        return GenaiSession(folder, manifest, threads)

    def reading_session(self, folder: Path, manifest: Manifest) -> GenaiSession:
        """Load a copy of the graph whose calls give every row's logits: the file's own give the last one's."""
        return _ReadingSession(folder, manifest)

    def load_library(self) -> None:
        """Import onnxruntime-genai, and onnx, which the file is read with before."""
        super().load_library()
        import onnx  # noqa: F401  imported here so that its memory counts as a library's


RUNTIME = Genai()


class GenaiSession(Session):
    """One conversation, batch 1 (see `Session`)."""

    runtime = "genai"
    has_state = False

    def __init__(self, folder: Path, manifest: Manifest, threads: int | None = None) -> None:
        self.version = RUNTIME.version()
        import onnxruntime_genai

        self.window = manifest.window
        method = manifest.methods[0]
        self._vocab = _check_config(folder / _CONFIG, method.file, self.window)
        check_graph(folder / method.file, method, manifest)
        self._library = onnxruntime_genai
        try:
            config = onnxruntime_genai.Config(str(folder))
            if threads is not None:
                options = {"intra_op_num_threads": threads}
                config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._prepare(config, folder, method.file)
            self._model = onnxruntime_genai.Model(config)
            self._generator = self._new_generator()
        except Exception as error:  # its exceptions have no common base of their own
            reason = one_line(error)
            raise ArtifactError(f"{folder}: onnxruntime-genai {self.version} cannot load it: {reason}") from error

    @property
    def position(self) -> int:
        return int(self._generator.token_count())

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        """Go on with a chunk; genai pads on its own terms, so `pad_to` is refused."""
        if pad_to is not None:
            raise UsageError("genai takes no padded chunks")
        check_room(self.position, len(tokens), self.window, self._vocab, tokens)
        self._generator.append_tokens(np.array(tokens, dtype=np.int32))
        logits: np.ndarray = self._generator.get_logits()  # [1, 1, vocab]
        return logits[0, -1].copy()

    def reset(self) -> None:
        if self.position:
            del self._generator  # its cache spans the window: never two at once
            self._generator = self._new_generator()

    def state(self) -> Snapshot:
        raise UsageError("genai keeps its state to itself; use --runtime onnxruntime for this")

    def _prepare(self, config: Any, folder: Path, file: str) -> None:
        """Change what is loaded; an ordinary session changes nothing."""

    def _new_generator(self) -> Any:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self.window, do_sample=False)
        return self._library.Generator(self._model, parameters)


class _ReadingSession(GenaiSession):
    """The same, over a graph in memory with another default for the rows it keeps, and the same weights."""

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        rows: list[np.ndarray] = []
        for start in range(0, len(tokens), RUNTIME.reads):
            self.prefill(tokens[start : start + RUNTIME.reads])
            rows.append(self._generator.get_output("logits")[0].copy())  # the next call may write there
        return np.concatenate(rows)

    def _prepare(self, config: Any, folder: Path, file: str) -> None:
        self._graph = _giving_all_rows(folder / file, folder)  # genai keeps an address, no copy
        config.add_model_data(file, self._graph)


def _giving_all_rows(path: Path, folder: Path) -> bytes:
    """A graph that keeps every row unless told otherwise, its weights' places told from the artifact's folder."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == _ROWS:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(_ALL, dtype=np.int64), _ROWS))
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = (path.parent / entry.value).relative_to(folder).as_posix()
    rows = next(output for output in model.graph.output if output.name == "logits").type.tensor_type.shape.dim[1]
    rows.dim_param = "sequence_length"
    return bytes(model.SerializeToString())


def _check_config(path: Path, file: str, window: int) -> int:
    """The vocabulary of a `genai_config.json` that asks for nothing but to run `file`. ArtifactError otherwise.

    What it says of the window is the manifest's.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ArtifactError(f"{path}: larger than {_MOST_BYTES} bytes, that is no config")
        document = json.loads(path.read_bytes())
        for place, known in _KNOWN.items():
            node = document
            for key in place:
                node = node[key]
            if foreign := node.keys() - known:
                raise ArtifactError(f"{path}: {'.'.join((*place, min(foreign)))} is not a key lfm2-export writes")
        decoder = document["model"]["decoder"]
        if decoder["session_options"]["provider_options"] or decoder["filename"] != file:
            raise ArtifactError(f"{path}: asks for other files or providers than the manifest; export again")
        for length in (document["model"]["context_length"], document["search"]["max_length"]):
            if length != window:
                raise ArtifactError(f"{path}: a window of {length!r:.40}, the manifest says {window}; export again")
        return int(document["model"]["vocab_size"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: missing or malformed; export again") from error
