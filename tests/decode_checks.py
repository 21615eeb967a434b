"""What every kernel for the attention of a decoding step must show. PyTorch is the reference."""

import torch
from conftest import small_model

from nanotir.cache import new_cache
from nanotir.logps import autocast
from nanotir.model import RMSNorm

HEADS = {  # settings of a model, the positions of its four rows
    "two queries a key": ({"n_heads": 4, "n_kv_heads": 2, "norm_eps": 0.1}, [70, 64, 3, 0]),
    "no norm, a bias": (
        {"n_heads": 6, "n_kv_heads": 1, "d_head": 24, "qk_norm": False, "qkv_bias": True},
        [65, 63, 1, 2],
    ),
    "padding": ({"n_heads": 2, "n_kv_heads": 2}, [5, -1, 69, -1]),
}


def decoded(positions: list[int], model, kernel=None, bf16: bool = False) -> tuple:
    """(logits (4, V), the cache) after a step at these positions, of rows of 70 ids."""
    device = model.embed.weight.device
    ids = torch.randint(50, (4, 71), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad(), autocast(device, bf16):
        cache = new_cache(model, 4, 80)
        model.hidden(ids[:, :70], cache=cache)
        cache.kernel = kernel
        at = torch.tensor(positions, device=device)[:, None]
        return model(ids[:, -1:], at, cache)[:, 0].float(), cache


def check_a_step(kernel, name: str, device: str):
    """Logits, keys and values are PyTorch's. `name` is that of a case of HEADS."""
    settings, positions = HEADS[name]
    model = small_model(50, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in [m for m in model.modules() if isinstance(m, RMSNorm)]:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
    model.to(device)
    expected, plain = decoded(positions, model)
    found, cache = decoded(positions, model, kernel)
    real = [row for row, position in enumerate(positions) if position >= 0]
    torch.testing.assert_close(found[real], expected[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cache.kv[..., :-1, :], plain.kv[..., :-1, :], atol=1e-5, rtol=1e-5)
    assert found.isfinite().all()


def check_a_step_in_bf16(kernel, device: str, weights: torch.dtype = torch.float32):
    """It is as far from the step in fp32 as PyTorch's step in bf16."""
    model = small_model(50, n_heads=4, n_kv_heads=2).to(device)
    exact, _ = decoded([70, 64, 3, 0], model)
    model.to(weights)
    rounded, _ = decoded([70, 64, 3, 0], model, bf16=True)
    found, cache = decoded([70, 64, 3, 0], model, kernel, bf16=True)
    assert cache.kv.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.5 * (rounded - exact).norm()


def check_what_is_read(kernel, device: str):
    """What lies beyond a row's position is not read. Padding reads itself."""
    model = small_model(50).to(device)
    ids = torch.zeros(3, 1, dtype=torch.long, device=device)
    at = torch.tensor([[3], [40], [-1]], device=device)
    with torch.no_grad():
        cache = new_cache(model, 3, 60)
        model.hidden(ids.expand(3, 41), cache=cache)
        cache.kernel = kernel
        expected = model(ids, at, cache)
        for row, end in enumerate((4, 41, 0)):
            cache.kv[:, :, row, :, end:] = float("nan")
        torch.testing.assert_close(model(ids, at, cache), expected, atol=0, rtol=0)
