"""The tensors of a checkpoint directory: names, shapes and places, read from safetensors headers.

Knows the file format and nothing of models. Imports no torch: a directory is judged in
milliseconds, and whatever is wrong with it is named by file and tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvrt.errors import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ITEM_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """A tensor's ``nbytes`` bytes stand at ``offset`` in ``file``, row-major, little-endian."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ModelError naming the file for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found a {type(value).__name__}")
    return value


def read_tensor_index(directory: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint by name, from one safetensors file or the shards of an index.

    Raises ModelError for a missing, truncated or inconsistent file, naming it and the tensor.
    """
    single = directory / SINGLE_FILE
    if single.is_file():
        return {entry.name: entry for entry in read_header(single)}
    index = directory / INDEX_FILE
    if index.is_file():
        return _read_shards(index)
    if any(directory.glob("pytorch_model*.bin")):
        raise ModelError(
            f"{directory}: only pytorch_model.bin, which is a pickle and is never opened here; "
            "save the model again with save_pretrained to get safetensors"
        )
    raise ModelError(f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _read_shards(index: Path) -> dict[str, TensorEntry]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError(f"{index}: it has no weight_map")
    shards: dict[str, dict[str, TensorEntry]] = {}
    out = {}
    for name, file in names.items():
        path = _shard_path(index, name, file)
        if file not in shards:
            shards[file] = {e.name: e for e in read_header(path)}
        entry = shards[file].get(name)
        if entry is None:
            raise ModelError(f"{index.parent / file}: tensor {name} is missing; the index lists it")
        out[name] = entry
    return out


def _shard_path(index: Path, name: str, file: Any) -> Path:
    if not isinstance(file, str) or Path(file).name != file:
        raise ModelError(f"{index}: tensor {name} is said to be in {file!r}, which is no file name")
    path = index.parent / file
    if not path.is_file():
        raise ModelError(f"{path}: the file is missing; {index.name} puts tensor {name} there")
    return path


def read_header(path: Path) -> Iterator[TensorEntry]:
    """The tensors of one safetensors file; checks that the file holds all their bytes."""
    header, data_start, size = _raw_header(path)
    end = 0
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        entry = _entry(path, name, fields, data_start)
        if entry.offset + entry.nbytes > size:
            raise ModelError(
                f"{path}: truncated: tensor {name} ends at byte {entry.offset + entry.nbytes}, "
                f"the file at {size}"
            )
        end = max(end, entry.offset + entry.nbytes)
        yield entry
    if end and end != size:
        raise ModelError(f"{path}: damaged: {size - end} bytes stand behind the last tensor")


def _raw_header(path: Path) -> tuple[dict[str, Any], int, int]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            n_bytes = int.from_bytes(file.read(8), "little")
            if size < 8 or n_bytes > min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(f"{path}: truncated, or not a safetensors file ({size} bytes)")
            header = json.loads(file.read(n_bytes))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: damaged: its header is not a JSON object")
    return header, 8 + n_bytes, size


def _entry(path: Path, name: str, fields: Any, data_start: int) -> TensorEntry:
    try:
        dtype, shape = fields["dtype"], tuple(int(n) for n in fields["shape"])
        start, stop = (int(offset) for offset in fields["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: damaged: the header of tensor {name} makes no sense") from error
    item_bytes = ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if item_bytes is None:
        raise ModelError(f"{path}: tensor {name} has the unknown type {dtype!r}")
    nbytes = math.prod(shape) * item_bytes
    if min(shape, default=0) < 0 or start < 0 or stop - start != nbytes:
        raise ModelError(
            f"{path}: damaged: tensor {name} of shape {list(shape)} and type {dtype} "
            f"needs {nbytes} bytes and has {stop - start}"
        )
    return TensorEntry(
        name=name, file=path, dtype=dtype, shape=shape, offset=data_start + start, nbytes=nbytes
    )
