"""C++ for a CPU: how it is compiled, and attention of a decoding step. (Skip it at first reading.)

Where there is a C++ compiler, attention and the formulas of gradients.py are computed in C++: in
one pass over memory instead of one an operation. Without a compiler PyTorch computes the same, up
to rounding. Compiling takes about a second. The result is kept beside Python's own compiled files.

PyTorch's attention is made for many queries. For the one of a decoding step it multiplies matrices
of two or three rows, whose calls take longer than their sums. `decode.cpp` writes these sums
out, reads a row's own slots alone, and stores keys and values as well.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, library

# As torch.compile chooses it.
COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
FOLDER = Path(__file__).parent / "cpp"
DTYPES = (torch.float32, torch.bfloat16)


def serves(x: Tensor) -> bool:
    """Whether formulas of x are computed in C++: on a CPU, in fp32 or in bf16, in training.

    In a decoding step, in inference mode or by torch.compile, PyTorch's own are as fast.
    """
    decoding = torch.compiler.is_compiling() or torch.is_inference_mode_enabled()
    able = x.device.type == "cpu" and x.dtype in DTYPES and not decoding
    return able and formulas(x.dtype) is not None


@lru_cache
def formulas(dtype: torch.dtype) -> ctypes.CDLL | None:
    return compiled("formulas.cpp", dtype)


@lru_cache
def attention(source: str, width: int, group: int, dtype: torch.dtype) -> ctypes.CDLL | None:
    """decode.cpp or attention.cpp, for D = `width` and GROUP = `group`."""
    shape = f"-DD={width}", f"-DGROUP={group}"
    return compiled(source, dtype, *shape, *["-DTILES"] * tiles())


@lru_cache
def tiles() -> bool:
    """Whether the processor multiplies tiles of bf16 (AMX), and the system permits it.

    It is asked once, for all threads of this process.
    """
    return torch.cpu.get_capabilities().get("amx_bf16", False) and torch.cpu._init_amx()


def run(function, *arguments):
    """Call a function of C++ with tensors, None, whole numbers and fractions."""
    function.restype = None
    function(*map(as_c, arguments))


def as_c(argument):
    if isinstance(argument, Tensor):
        assert argument.is_contiguous()
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    return argument if argument is None else ctypes.c_float(argument)


def kernel(config, dtype: torch.dtype) -> Callable | None:
    """`decode_attention`, for a model's ModelConfig. None if C++ does not serve such a cache."""
    if dtype not in DTYPES:
        return None
    group = config.n_heads // config.n_kv_heads
    functions = attention("decode.cpp", config.d_head, group, dtype)
    return functions and decode_attention


def decode_attention(module, heads: Tensor, layout, layer: int) -> Tensor:
    """As kernels.decode_attention, for a cache in fp32 or in bf16 on a CPU."""
    keys, values = layout.cache.kv[layer]  # each (B, K, S, D)
    *weights, eps = norms_of(module)
    given = (heads.to(keys.dtype), *weights, layout.cos.float(), layout.sin.float())
    step = _operation if torch.compiler.is_compiling() else _attention
    return step(*given, layout.positions, keys, values, module.heads, eps)


def norms_of(module) -> tuple[Tensor | None, Tensor | None, float]:
    """The weights by which a model.Attention normalises queries and keys, if it does, and eps."""
    if not module.qk_norm:
        return None, None, 0.0
    q_norm, k_norm = module.q_norm, module.k_norm
    return q_norm.weight.float(), k_norm.weight.float(), q_norm.eps


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
    given = [heads, q_weight, k_weight, cos, sin, positions]
    given = [tensor if tensor is None else tensor.contiguous() for tensor in given]
    function = attention("decode.cpp", D, H // K, keys.dtype).decode_attention
    run(function, *given, keys, values, out, B, K, S, eps)
    return out


# That it writes to `keys` and `values` is not declared: torch.compile would copy both at each
# layer. Nothing else in a compiled step reads them, and each layer needs what the one before gives.
_operation = library.custom_op("nanotir::decode_attention", _attention, mutates_args=())


@_operation.register_fake
def _(heads, q_weight, k_weight, cos, sin, positions, keys, values, H, eps):
    return keys.new_empty(heads.shape[0], 1, H * heads.shape[3])


def compiled(source: str, dtype: torch.dtype, *defines: str) -> ctypes.CDLL | None:
    """The functions of a file of C++. None without a compiler, or, with a warning, if it fails."""
    if not shutil.which(COMPILER):
        return None
    named_by_cpu = platform.machine() in ("arm64", "aarch64", "ppc64le")
    machine = "-mcpu=native" if named_by_cpu else "-march=native"
    # Sums may be reordered, but a NaN stays one.
    options = ["-std=c++17", "-O3", machine, "-ffast-math", "-fno-finite-math-only"]
    # What else -ffast-math would link sets small numbers to 0 in all of the process.
    options += ["-shared", "-fPIC", "-nostartfiles", *defines]
    options += ["-DBF16"] * (dtype == torch.bfloat16)
    try:
        return loaded(FOLDER / source, options)
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        print(f"{COMPILER} failed ({reason}): PyTorch computes instead", file=sys.stderr)
        return None


def loaded(source: Path, options: list[str]) -> ctypes.CDLL:
    """The library that a source is compiled to, unless it is there from before."""
    command = [COMPILER, *options, str(source)]
    # What the compiler would do names the processor's instructions.
    would = subprocess.run([*command, "-E", "-###"], capture_output=True, text=True, check=True)
    sources = [source, *sorted(FOLDER.glob("*.h"))]
    read = [would.stderr.encode(), *(path.read_bytes() for path in sources)]
    cache = Path(cache_from_source(__file__)).parent
    kept = cache / f"{source.stem}.{hashlib.sha256(b''.join(read)).hexdigest()[:16]}.so"
    if kept.exists():
        return ctypes.CDLL(str(kept))
    keeps = os.access(cache, os.W_OK)  # and there, as Python then keeps code of its own
    with TemporaryDirectory(dir=cache if keeps else None) as folder:
        program = Path(folder, kept.name)
        command += ["-o", str(program)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        functions = ctypes.CDLL(str(program))
        if keeps:
            program.replace(kept)
    return functions
