"""The reference: the traced model run by PyTorch itself, a `Session` like any other.

It needs a checkpoint, not an artifact, so it is opened by `parity` and never listed among the runtimes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lfm2_export.model.decoder import Decoder
from lfm2_export.model.state import State, empty_state, is_cache, write_slices
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.model.vision.images import Image, encode, with_images
from lfm2_export.runtimes.session import Session, Snapshot, check_draft, check_kept, check_room, check_snapshot

_VERIFIED = 16  # tokens of a draft


class EagerSession(Session):
    """One conversation with a `Decoder` (fp32 or quantized) in explicit form, on the device that holds it.

    With the image part of its model it takes images.
    """

    version = str(torch.__version__)
    pads = True

    def __init__(self, decoder: Decoder, window: int, encoder: VisionEncoder | None = None) -> None:
        self.decoder = decoder
        self.window = window
        self._encoder, self._images = encoder, torch.zeros(0)
        self.takes_images = encoder is not None
        self.verifies = min(window, _VERIFIED)
        self.reset()

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        """Begin anew, where the decoder is now: it may have moved since."""
        self._position = 0
        self._verified: tuple[int, ...] = ()
        self.runtime = eager_on(self.decoder.device)
        self._state = empty_state(self.decoder.config, self.window, device=self.decoder.device)

    def prefill(self, tokens: Sequence[int], pad_to: int | None = None) -> np.ndarray:
        return self._run(tokens, pad_to, all_logits=False)[0]

    @torch.inference_mode()
    def encode(self, patches: np.ndarray, rows: int, columns: int) -> np.ndarray:
        if self._encoder is None:
            return super().encode(patches, rows, columns)  # refuses
        return encode(self._encoder, [Image(torch.from_numpy(patches), rows, columns)]).numpy()

    def prefill_with_images(self, tokens: Sequence[int], images: np.ndarray) -> np.ndarray:
        if self._encoder is None:
            return super().prefill_with_images(tokens, images)  # refuses
        self._images = torch.from_numpy(images)
        try:
            return self.prefill(tokens)
        finally:
            self._images = torch.zeros(0)

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        """Go on as `prefill` does; return the logits of every token, `[T, vocab]`: teacher forcing, eager only."""
        return self._run(tokens, None, all_logits=True)[0]

    def verify(self, tokens: Sequence[int]) -> np.ndarray:
        check_draft(len(tokens), self.verifies)
        logits, _ = self._computed(tokens, None, all_logits=True)
        self._verified = tuple(tokens)
        return logits.cpu().numpy()[0]

    def keep(self, count: int) -> None:
        """The model is a function: what was verified has left no trace, and what is kept is fed now."""
        check_kept(count, len(self._verified))
        kept, self._verified = self._verified[:count], ()
        if kept:
            self._run(kept, None, all_logits=False)

    def state(self) -> Snapshot:
        cut = {
            name: (tensor[:, :, : self._position] if is_cache(name) else tensor).cpu().numpy().copy()
            for name, tensor in self._state.items()
        }
        return Snapshot(self._position, cut)

    def restore(self, snapshot: Snapshot) -> None:
        check_snapshot(snapshot, {name: tuple(tensor.shape) for name, tensor in self._state.items()})
        self.reset()
        self._position = snapshot.position
        for name, values in snapshot.tensors.items():
            tensor = torch.from_numpy(values)
            if is_cache(name):
                self._state[name][:, :, : snapshot.position] = tensor
            else:
                self._state[name].copy_(tensor)

    def _run(self, tokens: Sequence[int], pad_to: int | None, all_logits: bool) -> np.ndarray:
        logits, new = self._computed(tokens, pad_to, all_logits)
        write_slices(self._state, new, torch.tensor([self._position]), torch.tensor([len(tokens)]))
        self._position += len(tokens)
        self._verified = ()
        return logits.cpu().numpy()

    @torch.inference_mode()
    def _computed(self, tokens: Sequence[int], pad_to: int | None, all_logits: bool) -> tuple[torch.Tensor, State]:
        check_room(self._position, len(tokens), self.window, self.decoder.config.vocab_size, tokens)
        device = self.decoder.device
        rows = torch.tensor([[*tokens, *[0] * max(0, (pad_to or 0) - len(tokens))]], device=device)
        position = torch.tensor([self._position], device=device)
        length = torch.tensor([len(tokens)], device=device)
        if self._encoder is not None and len(self._images):
            embedded = self.decoder.embed_tokens(rows)
            x = with_images(self._encoder.config, rows, embedded, self._images.to(device))
            call = self.decoder.call(rows, position, length)
            return self.decoder.from_embeddings(x, call, self._filled(), all_logits)
        computed: tuple[torch.Tensor, State] = self.decoder(rows, position, length, self._filled(), all_logits)
        return computed

    def _filled(self) -> dict[str, torch.Tensor]:
        """The state with the caches cut to their filled part: masked columns cost time and add exact zeros."""
        columns = max(1, self._position)
        return {name: t[:, :, :columns] if is_cache(name) else t for name, t in self._state.items()}


def eager_on(device: torch.device) -> str:
    """Return what a report calls eager PyTorch on that device."""
    return "eager" if device.type == "cpu" else f"eager on {device.type}"
