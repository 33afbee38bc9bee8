"""What a `.pte` can hold but ExecuTorch's exporter does not write: tensors stored once, state that is no output.

A `.pte` is a flatbuffer followed by segments of raw bytes. The constants of operators outside the delegate lie in one
segment, at offsets; each weight of the delegate has a segment of its own. Nothing forbids segments to overlap: when the
embedding operator and the delegate's head hold the same bytes, the constants' segment is stretched over the head's.

Layout: executorch's schema/program.fbs and schema/extended_header.cpp. The exporter's own, private, reader and writer
of the flatbuffer are used, one of the reasons for the exact pin of executorch.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program, _program_to_flatbuffer
from executorch.exir._serialize._program import _ExtendedHeader, _get_extended_header, _insert_flatbuffer_header
from executorch.exir.schema import Tensor

_ALIGNMENT = 128  # of every segment and shared tensor, as the exporter aligns segments
_CONSTANT_ALIGNMENT = 16  # of a tensor inside the constants' segment, as the exporter has it

_ITEM_BYTES = {
    "BYTE": 1,
    "CHAR": 1,
    "BOOL": 1,
    "SHORT": 2,
    "HALF": 2,
    "BFLOAT16": 2,
    "FLOAT": 4,
    "INT": 4,
    "LONG": 8,
    "DOUBLE": 8,
}


class Piece(NamedTuple):
    """Bytes that go from one place of the segment area to another."""

    source: int
    size: int
    target: int


def intact_weights(path: Path) -> set[str]:
    """Keys of the delegate's weights whose bytes are those the key, a SHA-256, stands for."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        program, area = _read(data)
        with area:
            found = [(entry.key, program.segments[entry.segment_index]) for entry in program.named_data or []]
            return {key for key, at in found if key.endswith(_digest(area, at.offset, at.size).hex())}


def tidy(source: Path, destination: Path) -> int:
    """Rewrite a `.pte`: mutated inputs are no longer outputs, equal bytes are stored once. Returns the bytes saved.

    The exporter lists an input that the method mutates among the outputs too; a runtime that gives outputs memory of
    their own (`load_method`) would then compute on that memory instead of the caller's.
    """
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        program, area = _read(data)
        for plan in program.execution_plan:
            plan.outputs = [value for value in plan.outputs if value not in plan.inputs]
        with area:
            _write(destination, program, _share(program, area), area)
    return source.stat().st_size - destination.stat().st_size


def _read(data: mmap.mmap) -> tuple[Any, memoryview]:
    """The program and the segment area behind it, which must be released before the file is unmapped."""
    header = _get_extended_header(data[: _ExtendedHeader.NUM_HEAD_BYTES])
    return _flatbuffer_to_program(data[: header.program_size]), memoryview(data)[header.segment_base_offset :]


def _share(program: Any, area: memoryview) -> list[Piece]:
    """Lay the segments out anew, a constant that equals a whole segment inside that segment. Edits `program`."""
    segments, constants = program.segments, program.constant_segment
    if constants is None or not constants.offsets:
        return [Piece(segment.offset, segment.size, segment.offset) for segment in segments]
    home, sizes = constants.segment_index, _sizes(program)
    by_digest = {
        (segment.size, _digest(area, segment.offset, segment.size)): index
        for index, segment in enumerate(segments)
        if index != home
    }
    pieces: list[Piece] = []
    moved: dict[int, int] = {}  # segment → its new offset
    placed: dict[int, int] = {}  # constant's old offset → its new one
    twins: dict[int, int] = {}  # constant's old offset → the segment of equal bytes
    end = 0
    whole = segments[home]
    for start, stop in pairwise(sorted({*constants.offsets, whole.size})):
        size = sizes.get(start, stop - start)
        twin = by_digest.get((size, _digest(area, whole.offset + start, size))) if size else None
        if twin is not None:
            twins[start] = twin
            continue
        placed[start] = end = _aligned(end, _CONSTANT_ALIGNMENT)
        pieces.append(Piece(whole.offset + start, stop - start, end))
        end += stop - start
    for index in dict.fromkeys(twins.values()):
        moved[index] = end = _aligned(end, _ALIGNMENT)
        pieces.append(Piece(segments[index].offset, segments[index].size, end))
        end += segments[index].size
    placed |= {start: moved[index] for start, index in twins.items()}
    constants.offsets = [placed.get(start, end) for start in constants.offsets]  # an empty one may lie at the end
    moved[home], size = 0, end
    for index, segment in enumerate(segments):
        if index not in moved:
            moved[index] = end = _aligned(end, _ALIGNMENT)
            pieces.append(Piece(segment.offset, segment.size, end))
            end += segment.size
    for index, segment in enumerate(segments):
        segment.offset = moved[index]
    whole.size = size
    return pieces


def _sizes(program: Any) -> dict[int, int]:
    """The bytes of every constant by its offset in their segment, where padding follows."""
    offsets, found = program.constant_segment.offsets, dict[int, int]()
    for tensor in (value.val for plan in program.execution_plan for value in plan.values):
        if isinstance(tensor, Tensor) and tensor.data_buffer_idx and tensor.allocation_info is None:
            offset, item = offsets[tensor.data_buffer_idx], _ITEM_BYTES[tensor.scalar_type.name]
            found[offset] = max(math.prod(tensor.sizes) * item, found.get(offset, 0))
    return found


def _write(path: Path, program: Any, pieces: list[Piece], area: memoryview) -> None:
    flat = _program_to_flatbuffer(
        program, constant_tensor_alignment=_CONSTANT_ALIGNMENT, delegate_alignment=_CONSTANT_ALIGNMENT
    )
    room = _aligned(_ExtendedHeader.EXPECTED_LENGTH, flat.max_alignment)
    program_size = room + len(flat.data)
    base = _aligned(program_size, _ALIGNMENT)
    header = _ExtendedHeader(program_size, base, max(piece.target + piece.size for piece in pieces))
    head = _insert_flatbuffer_header(flat.data, "ET..", header.to_bytes().ljust(room, b"\0"))
    with path.open("wb") as file:
        file.write(head)
        for piece in sorted(pieces, key=lambda piece: piece.target):
            file.write(bytes(base + piece.target - file.tell()))
            file.write(area[piece.source : piece.source + piece.size])


def _digest(area: memoryview, start: int, size: int) -> bytes:
    return hashlib.sha256(area[start : start + size]).digest()


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
