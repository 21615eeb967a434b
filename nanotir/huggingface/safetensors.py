"""Files of weights in the safetensors format: a header in JSON, then the bytes of all tensors.

Reading maps the file into memory and copies nothing. Whatever the header says is checked against
the file before a tensor is made of it.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path

import torch
from torch import Tensor

from nanotir.run_files import check_types, reading, write_atomically

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """{name: tensor} of a file. What is written into a tensor does not reach the file.

    ValueError in one line, with the file's name, unless its header and its bytes fit together.
    """
    with reading(path):
        if not Path(path).is_file():
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            header = _read_header(file)
            start = file.tell()
            # Copy on write, because PyTorch has no read-only tensors.
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _check_order([_extent(name, entry) for name, entry in header.items()], len(data) - start)
        return {name: _tensor(data, start, entry) for name, entry in header.items()}


def _read_header(file) -> dict:
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LONGEST_HEADER):
        fault = f"a header of {length} bytes in a file of {size} bytes"
        raise ValueError(f"{fault}: it is truncated, or no safetensors file")
    header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop("__metadata__", None)
    return header


def _extent(name: str, entry) -> tuple[int, int]:
    """Where a tensor's bytes begin and end. ValueError unless its shape needs just as many."""
    with reading(name[:100]):
        check_types(entry, {"dtype": str, "shape": list, "data_offsets": list})
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"its dtype is {entry['dtype']:.20}, not one of {', '.join(DTYPES)}")
        if len(shape) > 8 or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
            raise ValueError("its shape or its place in the file makes no sense")
        if math.prod(shape) * DTYPES[entry["dtype"]].itemsize != end - begin:
            raise ValueError(f"its shape {shape} does not fit its {end - begin} bytes")
    return begin, end


def _check_order(extents: list[tuple[int, int]], size: int):
    """ValueError unless the tensors fill `size` bytes, with neither gaps nor overlaps."""
    reached = 0
    for begin, end in sorted(extents):
        if begin != reached:
            raise ValueError(f"its tensors overlap or leave a gap at byte {reached}")
        reached = end
    if reached != size:
        raise ValueError(f"its tensors need {reached} bytes, but it has {size}: it is damaged")


def _tensor(data, start: int, entry: dict) -> Tensor:
    shape, dtype = entry["shape"], DTYPES[entry["dtype"]]
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    offset = start + entry["data_offsets"][0]
    flat = torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=offset)
    return flat.view(shape)


def write_safetensors(path: str | Path, tensors: dict[str, Tensor]):
    """Write a file that is never half there. KeyError for a dtype other than those of DTYPES."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header = {"__metadata__": {"format": "pt"}}  # which transformers asks for
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        shape = list(tensor.shape)
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for tensor in tensors.values():
                file.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())

    write_atomically(path, write)
