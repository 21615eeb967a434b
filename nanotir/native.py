"""Attention of a decoding step in C++, for a CPU. (Skip it at first reading.)

PyTorch's attention is made for many queries. For the one of a decoding step it multiplies matrices
of two or three rows, whose calls take longer than their sums. `attention.cpp` writes these sums
out, reads a row's own slots alone, and stores keys and values as well. It is compiled when it is
first needed, which takes less than a second, for one width and one number of heads.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, library

# As torch.compile chooses it.
COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
SOURCE = Path(__file__).with_name("attention.cpp")
POINTERS, NUMBERS = 9, 3  # arguments of the function in C++, before eps


def kernel(config, dtype: torch.dtype) -> Callable | None:
    """`decode_attention`, compiled for a model's ModelConfig. None unless in fp32 or in bf16.

    ValueError if there is no C++ compiler, or if it fails.
    """
    if dtype not in (torch.float32, torch.bfloat16):
        return None
    compiled(config.d_head, config.n_heads // config.n_kv_heads, dtype)
    return decode_attention


def decode_attention(attention, heads: Tensor, layout, layer: int) -> Tensor:
    """As kernels.decode_attention, for a cache in fp32 or in bf16 on a CPU."""
    keys, values = layout.cache.kv[layer]  # each (B, K, S, D)
    weights, eps = (None, None), 0.0
    if attention.qk_norm:
        weights = (attention.q_norm.weight.float(), attention.k_norm.weight.float())
        eps = attention.q_norm.eps
    given = (heads.to(keys.dtype), *weights, layout.cos.float(), layout.sin.float())
    return _attention(*given, layout.positions, keys, values, attention.heads, eps)


# That it writes to `keys` and `values` is not declared: torch.compile would copy both at each
# layer. Nothing else in a compiled step reads them, and each layer needs what the one before gives.
@library.custom_op("nanotir::decode_attention", mutates_args=())
def _attention(
    heads: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    keys: Tensor,
    values: Tensor,
    H: int,
    eps: float,
) -> Tensor:
    B, _, _, D = heads.shape
    K, S = keys.shape[1:3]
    assert keys.stride() == values.stride() == (K * S * D, S * D, D, 1)
    out = torch.empty(B, 1, H * D, dtype=keys.dtype)
    tensors = [heads, q_weight, k_weight, cos, sin, positions]
    tensors = [tensor if tensor is None else tensor.contiguous() for tensor in tensors]
    tensors += [keys, values, out]
    pointers = [tensor if tensor is None else tensor.data_ptr() for tensor in tensors]
    compiled(D, H // K, keys.dtype)(*pointers, B, K, S, eps)
    return out


@_attention.register_fake
def _(heads, q_weight, k_weight, cos, sin, positions, keys, values, H, eps):
    return keys.new_empty(heads.shape[0], 1, H * heads.shape[3])


@lru_cache
def compiled(width: int, group: int, dtype: torch.dtype) -> Callable:
    """attention.cpp for heads of `width` numbers and `group` query heads a key head."""
    if not shutil.which(COMPILER):
        raise ValueError(f"sampler.compiled needs a C++ compiler: install {COMPILER}")
    named_by_cpu = platform.machine() in ("arm64", "aarch64", "ppc64le")
    machine = "-mcpu=native" if named_by_cpu else "-march=native"
    options = ["-std=c++17", "-O3", machine, "-ffast-math", "-shared", "-fPIC"]
    # What else -ffast-math would link sets small numbers to 0 in all of the process.
    options += ["-nostartfiles", f"-DD={width}", f"-DGROUP={group}"]
    options += ["-DBF16"] * (dtype == torch.bfloat16)
    with TemporaryDirectory() as folder:
        program = f"{folder}/attention.so"
        command = [COMPILER, *options, str(SOURCE), "-o", program]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            errors = [line for line in ran.stderr.splitlines() if "error" in line]
            reason = (errors or ran.stderr.splitlines() or ["no message"])[0]
            raise ValueError(f"{COMPILER} failed ({reason}): leave out sampler.compiled")
        try:
            function = ctypes.CDLL(program).decode_attention
        except OSError as error:
            raise ValueError(f"{error}: leave out sampler.compiled, or set TMPDIR") from error
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * POINTERS + [ctypes.c_int64] * NUMBERS + [ctypes.c_float]
    return function
