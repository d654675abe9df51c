"""Reading tensors from safetensors files straight into memory of our own.

Bytes are read, not mapped: what is resident is what was asked for, aligned as PyTorch aligns, and
the files may change afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dvrt.errors import ModelError
from dvrt.models.checkpoint import TensorEntry
from dvrt.models.held_weights import HeldWeights

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes in all."""

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read_tensor(
    entry: TensorEntry, dtype: torch.dtype, device: torch.device, held: HeldWeights | None = None
) -> torch.Tensor:
    """One tensor; floating point becomes ``dtype``. Raises ModelError naming file and tensor."""
    tensor = held.find(entry) if held is not None else None
    if tensor is None:
        tensor = read_as_saved(entry)
    wanted = dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(device=device, dtype=wanted)


def read_as_saved(entry: TensorEntry) -> torch.Tensor:
    """One tensor in host memory, of the type that the file has. Raises ModelError likewise."""
    saved = _TYPES.get(entry.dtype)
    if saved is None:
        raise ModelError(f"{entry.file}: tensor {entry.name} is of type {entry.dtype}")
    tensor = torch.empty(entry.shape, dtype=saved)
    if entry.nbytes:
        _fill(entry, tensor)
    return tensor


def _fill(entry: TensorEntry, tensor: torch.Tensor) -> None:
    buffer = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
    try:
        with entry.file.open("rb", buffering=0) as file:
            file.seek(entry.offset)
            done = 0
            while done < entry.nbytes:
                n_bytes = file.readinto(buffer[done:])
                if not n_bytes:
                    break
                done += n_bytes
    except OSError as error:
        raise ModelError(
            f"{entry.file}: tensor {entry.name} cannot be read: {error.strerror or error}"
        ) from error
    if done < entry.nbytes:
        raise ModelError(
            f"{entry.file}: truncated: tensor {entry.name} has {entry.nbytes} bytes, "
            f"{done} are there"
        )


def read_tensors(
    wanted: Mapping[str, TensorEntry],
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    held: HeldWeights | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors under the names they are wanted by, in the files' order."""
    total, done, out = sum(entry.nbytes for entry in wanted.values()), 0, {}
    for name, entry in sorted(wanted.items(), key=lambda item: (item[1].file, item[1].offset)):
        out[name] = read_tensor(entry, dtype, device, held)
        done += entry.nbytes
        if progress is not None:
            progress(done, total)
    return out
