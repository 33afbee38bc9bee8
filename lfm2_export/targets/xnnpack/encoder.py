"""The method `vision_encoder` in both forms: what stands before the image part, which takes patches block by block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lfm2_export.model.vision import grid as grids
from lfm2_export.model.vision.encoder import VisionEncoder
from lfm2_export.targets.xnnpack.network import DelegatedNetwork
from lfm2_export.targets.xnnpack.vision import (
    BLOCKS,
    COLUMN,
    HEIGHT,
    ROW,
    WIDTH,
    extents,
    inside,
    neighbour,
    prepared_images,
    taps,
)
from lfm2_export.targets.xnnpack.weights import Weights


class Encoder(DelegatedNetwork):
    """A `VisionEncoder`, for images of at most `limit` embeddings."""

    def __init__(self, encoder: VisionEncoder, limit: int, weights: Weights) -> None:
        network = prepared_images(encoder.config)
        super().__init__(network, encoder, extents(encoder.config, limit), weights)
        self.config, self.result = encoder.config, network.logits

    def embeddings(self, patches: Tensor, row: Tensor, column: Tensor, grid: Tensor) -> Tensor:
        """patches `[N, values]` block by block, `row` and `column [1, N] int64` of each, grid `[1, 2] int64` →
        `[1, T, H]`."""
        by_block = self.config.merge**2
        given: dict[str, Tensor] = {
            BLOCKS: patches.unflatten(0, (-1, by_block)).flatten(1).unsqueeze(0),
            ROW: row.unflatten(1, (-1, by_block)).to(torch.float32),
            COLUMN: column.unflatten(1, (-1, by_block)).to(torch.float32),
            HEIGHT: grid[:, 0].to(torch.float32),
            WIDTH: grid[:, 1].to(torch.float32),
        }
        merge, size = self.config.merge, self.config.conv_kernel_size
        for tap in taps(self.config):
            place, found = grids.neighbour(row, column, grid, merge, size, tap)
            given[neighbour(tap)] = (place * found)[0]  # any patch will do where there is none
            given[inside(tap)] = found.unflatten(1, (-1, by_block)).to(torch.float32)
        result: Tensor = self.values(given)[self.result]
        return result


class OfPatches(nn.Module):
    """(patches `[1, N, values]`, grid `[1, 2] int64`: rows and columns) → embeddings `[1, N/merge², H]`.

    Patches come as the processor gives them: LFM2-VL's row by row, LFM3-VL's block by block.
    """

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:
        row, column = grids.coordinates(grid, patches.shape[1], self.network.config.merge)
        by_block = patches[0]
        if self.network.config.model_type == "lfm2_vl":
            by_block = by_block.index_select(0, (row * grid[:, 1:] + column)[0])
        return self.network.embeddings(by_block, row, column, grid)


class OfImage(nn.Module):
    """image `[1, 3, height, width] fp32`, both sides multiples of merge patches → embeddings `[1, T, H]`.

    Pixels are as the processor makes them; the image is cut into patches here.
    """

    def __init__(self, network: Encoder) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        config = self.network.config
        merge, side = config.merge, config.patch_size
        rows, columns = image.shape[2] // side, image.shape[3] // side
        apart = image[0].unflatten(2, (columns // merge, merge, side)).unflatten(1, (rows // merge, merge, side))
        if config.model_type == "lfm2_vl":
            patches = apart.permute(1, 4, 2, 5, 3, 6, 0)
        else:  # an image is a video of the same picture
            patches = apart.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, config.frames, -1, -1)
        patches = patches.reshape(rows * columns, config.patch_values)
        grid = torch.cat([torch.full((1, 1), count, dtype=torch.long) for count in (rows, columns)], dim=1)
        row, column = grids.coordinates(grid, rows * columns, merge)
        return self.network.embeddings(patches, row, column, grid)
