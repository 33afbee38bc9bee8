"""What a runtime is: something that executes an artifact. Each is a subclass, in a file of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from lfm2_export.artifact.manifest import Manifest
from lfm2_export.runtimes.session import Session

if TYPE_CHECKING:
    from lfm2_export.quantize.scheme import Rules  # whose file imports torch


class Runtime(ABC):
    """A library or program that executes artifacts, and what `parity`, `bench` and `chat` must know about it.

    The class attributes are the runtime's description, so its file imports no heavy library: methods do, when called.
    """

    name: str  # as in `--runtime NAME`: the file's name, with `-` for `_`
    targets: ClassVar[tuple[str, ...]]  # whose artifacts it executes
    forms: ClassVar[tuple[str, ...]] = ("explicit",)
    # "first": its targets' own runtime, with which chat and bench begin; "always": by every proof as well;
    # "on request": only when it is named, since it repeats a target's own kernels on the same file
    taken: ClassVar[Literal["first", "always", "on request"]] = "always"
    computes_on: ClassVar[Literal["CPU", "GPU", "NPU"]] = "CPU"
    takes_images: ClassVar[bool] = False  # whether it executes artifacts of vision-language models
    # bits of a weight → how many times as far from eager as sums in fp32 its kernels lead, where they sum in fp16
    half_sums: ClassVar[Mapping[int, float]] = {}
    # whether it only computes what a target's own runtime would, where that one is absent: it proves no artifact
    stands_in: ClassVar[bool] = False
    # hardware whose work it does, which makes it slow: `parity` asks an emulator less
    emulates: ClassVar[Literal["CPU", "NPU"] | None] = None
    reads: ClassVar[int] = 0  # tokens that a `reading_session` takes in a call; 0 where there is none
    # processor → the runtime for it, found as `NAME/PROCESSOR`, of one that can emulate several
    processors: ClassVar[Mapping[str, Runtime]] = {}

    @abstractmethod
    def version(self) -> str:
        """Return the version of the installed library.

        Raises MissingDependencyError, with the command that installs it, where it or its hardware is absent.
        """

    def refusal(self, manifest: Manifest) -> str | None:
        """Return why this runtime is not meant for such an artifact, as the end of a sentence; None where it is."""
        if manifest.target not in self.targets or manifest.form not in self.forms:
            able = f"{' and '.join(self.targets)} in {' or '.join(self.forms)} form"
            return f"it runs {able}, and this is {manifest.target} in {manifest.form} form"
        if manifest.takes_images and not self.takes_images:
            return "it takes no images, and this is of a vision-language model"
        return None

    def runs(self, manifest: Manifest) -> bool:
        """Return whether this runtime is meant for such an artifact."""
        return self.refusal(manifest) is None

    @abstractmethod
    def open_session(self, folder: Path, manifest: Manifest, threads: int | None = None) -> Session:
        """Load an artifact for one conversation, batch 1.

        `threads` is how many CPU threads may compute; None leaves it to the library, and a runtime that does not
        compute on the CPU's threads has no use for it. Raises ArtifactError where the library refuses the files.
        """

    @property
    def judges_weights(self) -> bool:
        """Whether there is a `weights_session`."""
        return type(self).weights_session is not Runtime.weights_session

    def weights_session(self, folder: Path, manifest: Manifest) -> Session | None:
        """Load the same files with activations and KV cache in fp32, to judge the stored weights without rounding.

        None where the runtime cannot: its kernels round their inputs, or another runtime judges the same file.
        """
        return None

    def reading_session(self, folder: Path, manifest: Manifest) -> Session | None:
        """Load the artifact to `read` long texts, several tokens a call.

        None where an ordinary session reads so, or where nothing can.
        """
        return None

    def reference_session(self, folder: Path, manifest: Manifest) -> Session | None:
        """Load the same quantized arithmetic in a library that is trusted on this machine.

        None where eager PyTorch computes what the file does, which is then the reference.
        """
        return None

    def twin_session(self, folder: Path, manifest: Manifest) -> Session | None:
        """Load the program that an emulator runs on this machine's own processor. None where there is no such thing."""
        return None

    def activation_block(self, outputs: int, inputs: int, group: int) -> int | None:
        """Return how many inputs share a scale where its kernels round a matrix's input to int8 (`int8-block`).

        `group` is that of the weights `[outputs, inputs]`, the usual answer; None means they do not round at all.
        """
        return group

    def noise(self, rules: Rules) -> float:
        """Return how many times as far as eager's own noise (`parity/noise.py`) rounding alone may lead its kernels.

        That noise is one of sums in fp32. Products of fp16 inputs with the weights in `half_sums` are summed in fp16.
        """
        bits = {rule.weight.bits for rule in rules if rule.weight and rule.activation == "float16"}
        return max((self.half_sums.get(each, 1.0) for each in bits), default=1.0)

    def load_library(self) -> None:
        """Import the library into this process, so that what a session takes afterwards is the model's own."""
        self.version()

    def prepare(self, folder: Path, manifest: Manifest) -> None:
        """Do what is done once for an artifact on a machine, before sessions are opened. By default nothing."""
        return
