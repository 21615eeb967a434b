"""Formulas in C++ and their gradients, against PyTorch's."""

import platform
import shutil
import subprocess
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model

from nanotir import gradients, native
from nanotir.logps import autocast, masked_logps
from nanotir.lora import adapt
from nanotir.model import attend
from nanotir.rope import rotate

pytestmark = pytest.mark.skipif(
    not shutil.which(native.COMPILER), reason=f"there is no {native.COMPILER}"
)

EPS = 1e-5
IDS = torch.tensor([3, 0, 39, 7, 7, 12])
BANNED = [5, 38]
FP32, BF16 = torch.float32, torch.bfloat16


def norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS)


def norm_in_cpp(x, weight):
    return gradients.RMSNorm.apply(x, weight, EPS)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_in_cpp(gate_up):
    return gradients.SwiGLU.apply(
        gate_up.clone()
    )  # whose backward pass overwrites what it is given


def angles(B, T, D):
    return torch.randn(2, B, T, 1, D, generator=torch.Generator().manual_seed(1))


def attention(K, group, heads, *weights):
    """As a model.Attention reads heads (B, T, H+2K, D) of its own rows."""
    B, T, _, D = heads.shape
    cos, sin = angles(B, T, D).to(heads.dtype)
    q, k, v = heads.split([K * group, K, K], dim=2)
    if weights:
        q, k = (norm(x, weight) for x, weight in zip((q, k), weights))
    return attend(rotate(q, cos, sin), rotate(k, cos, sin), v, None).flatten(2)


def attention_in_cpp(K, group, heads, *weights):
    B, T, _, D = heads.shape
    cos, sin = angles(B, T, D)
    return attention_at(torch.arange(T).expand(B, T), cos, sin, K, group, heads, *weights)


def attention_at(positions, cos, sin, K, group, heads, *weights):
    q_norm, k_norm = (SimpleNamespace(weight=weight, eps=EPS) for weight in weights or (0, 0))
    module = SimpleNamespace(qk_norm=bool(weights), q_norm=q_norm, k_norm=k_norm)
    module.kv_heads, module.heads = K, K * group
    layout = SimpleNamespace(positions=positions, cos=cos, sin=sin)
    return gradients.attention(module, heads.flatten(2), layout)


def log_probs(temperature, logits):
    """(2, N): log-probs and entropies, without the banned ids."""
    banned = torch.tensor(BANNED)
    all_logps = (logits.index_fill(-1, banned, float("-inf")) / temperature).log_softmax(-1)
    entropies = -(all_logps.exp() * all_logps.index_fill(-1, banned, 0.0)).sum(-1)
    return torch.stack([all_logps.gather(-1, IDS[:, None])[:, 0], entropies])


def log_probs_in_cpp(temperature, logits):
    kept = logits.index_fill(-1, torch.tensor(BANNED), float("-inf"))
    return torch.stack(gradients.LogProbs.apply(kept, IDS, temperature))


def attention_case(B, T, K, group, D, weights=True) -> tuple:
    shapes = [(B, T, K * (group + 2), D)] + [(D,)] * 2 * weights
    functions = (partial(attention_in_cpp, K, group), partial(attention, K, group))
    return *functions, shapes, (FP32, BF16)


CASES = {  # (in C++, by PyTorch, shapes of what has a gradient, their dtypes)
    "norm": (partial(norm_in_cpp), norm, [(3, 5, 24), (24,)], (FP32, BF16)),
    "norm of wide rows": (partial(norm_in_cpp), norm, [(4, 385), (385,)], (FP32, BF16)),
    "swiglu": (partial(swiglu_in_cpp), swiglu, [(3, 5, 34)], (FP32, BF16)),
    "attention": attention_case(2, 33, 2, 3, 16),
    "attention of one id": attention_case(3, 1, 2, 1, 32),
    "attention of a block": attention_case(1, 32, 1, 2, 24),
    "attention of many blocks": attention_case(2, 150, 1, 1, 64),
    "attention without norms": attention_case(2, 70, 3, 2, 6, weights=False),
    "log-probs": (partial(log_probs_in_cpp, 1.0), partial(log_probs, 1.0), [(6, 40)], (FP32, BF16)),
    "at 0.7": (partial(log_probs_in_cpp, 0.7), partial(log_probs, 0.7), [(6, 40)], (FP32, BF16)),
}
BY_DTYPE = [(name, dtype) for name, case in CASES.items() for dtype in case[3]]


def given(shapes, dtype) -> list[torch.Tensor]:
    """Heads, or what else comes first, in `dtype`. The weights of norms stay in fp32."""
    generator = torch.Generator().manual_seed(0)
    first, *weights = (2 * torch.randn(*shape, generator=generator) for shape in shapes)
    return [first.to(dtype), *weights]


def found(function, inputs) -> list[torch.Tensor]:
    """The result, and the gradients of some sum over it."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    result = function(*inputs)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(2))
    (result * weights).sum().backward()
    return [result.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("name, dtype", BY_DTYPE)
def test_results_and_gradients_are_those_in_float64_up_to_rounding(name, dtype):
    check_case(name, dtype)


@pytest.mark.parametrize("name", [name for name in CASES if "attention" in name])
def test_attention_in_bf16_is_that_in_float64_without_tiles_too(name, without_tiles):
    check_case(name, BF16)


def test_attention_in_bf16_is_computed_by_tiles_where_there_are_any(packed_rows, request):
    macros = [native.COMPILER, "-march=native", "-dM", "-E", "-x", "c++", "-"]
    known = subprocess.run(macros, input="", capture_output=True, text=True).stdout
    if not native.tiles() or not all(x in known for x in ("__AMX_BF16__", "__AVX512BF16__")):
        pytest.skip("the processor or the compiler has no AMX")
    heads, weights, places = packed_rows
    function, inputs = attention_of(heads, weights, places)
    slopes = torch.randn(1, sum(LENGTHS), 64, generator=torch.Generator().manual_seed(2))
    by_tiles = differentiated(function, inputs, slopes)
    request.getfixturevalue("without_tiles")
    by_vectors = differentiated(function, inputs, slopes)
    for gradient, other in zip(by_tiles, by_vectors, strict=True):
        assert torch.equal(gradient, other) == (heads.dtype == FP32)


@pytest.fixture
def without_tiles(monkeypatch):
    """As on a processor without AMX."""
    forget = native.attention.cache_clear
    monkeypatch.setattr(native, "tiles", lambda: False)
    forget()
    yield
    forget()


def check_case(name, dtype):
    in_cpp, formula, shapes, _ = CASES[name]
    inputs = given(shapes, dtype)
    exact = found(formula, [x.double() for x in inputs])
    for value, expected in zip(found(in_cpp, inputs), exact, strict=True):
        units = 30 if dtype == FP32 else 2
        error = (value - expected).abs().max()
        assert error < units * torch.finfo(dtype).eps * expected.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("name, dtype", BY_DTYPE)
def test_a_number_that_is_not_finite_is_seen_in_the_result(name, dtype):
    in_cpp, _, shapes, _ = CASES[name]
    for i, shape in enumerate(shapes):
        places = torch.Size(shape).numel()
        for place in range(0, places, max(1, places // 37)):
            inputs = given(shapes, dtype)
            inputs[i].view(-1)[place] = float("nan")
            banned = in_cpp.func is log_probs_in_cpp and place % 40 in BANNED
            assert in_cpp(*inputs).isnan().any() != banned, (i, place)


@pytest.mark.parametrize("name, dtype", BY_DTYPE)
def test_what_is_given_is_not_written_to(name, dtype):
    in_cpp, _, shapes, _ = CASES[name]
    inputs = given(shapes, dtype)
    found(in_cpp, inputs)
    assert all(torch.equal(x, again) for x, again in zip(inputs, given(shapes, dtype)))


LENGTHS = [1, 70, 33, 1, 1, 16, 100, 32, 2]


@pytest.fixture(params=[FP32, BF16], ids=["fp32", "bf16"])
def packed_rows(request):
    """(heads (1, M, 8, 16), weights of the norms, (positions, cos, sin)) of rows of LENGTHS."""
    shapes = [(1, sum(LENGTHS), 8, 16), (16,), (16,)]
    heads, *weights = given(shapes, request.param)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]  # (1, M)
    return heads, weights, (positions, *angles(1, sum(LENGTHS), 16))


def attention_of(heads, weights, places):
    return partial(attention_at, *places, 2, 2), [heads, *weights]


def row_by_row(heads, weights, places) -> list[tuple]:
    rows = zip(*(x.split(LENGTHS, 1) for x in (heads, *places)))
    return [(own, weights, places) for own, *places in rows]


def test_rows_one_behind_the_other_attend_to_themselves_alone(packed_rows):
    heads, weights, places = packed_rows
    function, inputs = attention_of(heads, weights, places)
    parts = [attention_of(*row) for row in row_by_row(heads, weights, places)]
    alone = torch.cat([function(*inputs) for function, inputs in parts], 1)
    assert torch.equal(function(*inputs), alone)


def test_gradients_of_rows_one_behind_the_other_are_those_of_each_alone(packed_rows):
    heads, weights, places = packed_rows
    slopes = torch.randn(1, sum(LENGTHS), 64, generator=torch.Generator().manual_seed(2))
    whole = differentiated(*attention_of(heads, weights, places), slopes)
    rows = zip(row_by_row(heads, weights, places), slopes.split(LENGTHS, 1))
    parts = [differentiated(*attention_of(*row), part) for row, part in rows]
    of_heads, *of_weights = zip(*parts)
    assert torch.equal(whole[0], torch.cat(of_heads, 1))
    for gradient, gradients_alone in zip(whole[1:], of_weights, strict=True):
        torch.testing.assert_close(gradient, sum(gradients_alone), atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_stays_in_its_row(packed_rows):
    heads, weights, places = packed_rows
    heads[:, 40] = float("nan")  # of the second row
    function, inputs = attention_of(heads, weights, places)
    slopes = torch.ones(1, sum(LENGTHS), 64)
    of_heads, *_ = differentiated(function, inputs, slopes)
    for x in (function(*inputs), of_heads):
        bad = [bool(row.isnan().any()) for row in x.split(LENGTHS, 1)]
        assert bad == [n == 70 for n in LENGTHS]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the option is of such processors")
def test_vectors_of_eight_numbers_give_the_same(packed_rows, monkeypatch, without_tiles):
    """As on a processor without AVX-512."""
    heads, weights, places = packed_rows
    function, inputs = attention_of(heads, weights, places)
    slopes = torch.ones(1, sum(LENGTHS), 64)
    expected = [function(*inputs), *differentiated(function, inputs, slopes)]

    def narrow(source, width, group, dtype):
        shape = (f"-DD={width}", f"-DGROUP={group}", "-mno-avx512f")
        return native.compiled(source, dtype, *shape)

    monkeypatch.setattr(native, "attention", narrow)
    for value, other in zip(
        [function(*inputs), *differentiated(function, inputs, slopes)], expected
    ):
        tolerance = 1e-4 if heads.dtype == FP32 else 0.05
        torch.testing.assert_close(value, other, atol=tolerance, rtol=tolerance)


def differentiated(function, inputs, slopes) -> list[torch.Tensor]:
    """The gradients of the result's sum, weighted by `slopes`, with respect to the inputs."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad((function(*inputs) * slopes).sum(), inputs)


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_what_swiglu_is_given_becomes_its_own_gradient_in_the_backward_pass(dtype):
    (x,) = given([(3, 5, 34)], dtype)
    kept, slopes = x.clone(), torch.ones(3, 5, 17, dtype=dtype)
    out = gradients.SwiGLU.apply(x.requires_grad_())
    assert torch.equal(x, kept)
    (gradient,) = torch.autograd.grad(out, x, slopes)
    assert torch.equal(x, gradient)


@pytest.mark.parametrize("function", [partial(log_probs_in_cpp, 1.0), swiglu_in_cpp])
def test_what_was_overwritten_is_not_used_again(function):
    result = function(torch.zeros(6, 40, requires_grad=True)).sum()
    result.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="overwritten"):
        result.backward()


@pytest.mark.parametrize("settings", [{}, {"n_experts": 4, "d_shared": 16}, {"qk_norm": False}])
@pytest.mark.parametrize("rank", [0, 4])
def test_a_model_has_the_gradients_of_pytorch(rank, settings, monkeypatch):
    model = small_model(40, n_heads=4, n_kv_heads=2, **settings)
    if rank:
        adapt(model, rank)
        nudge(model)
    in_cpp = of_model(model)
    monkeypatch.setattr(native, "serves", lambda x: False)
    expected = of_model(model)
    assert in_cpp.keys() == expected.keys()
    for name, gradient in in_cpp.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_in_bf16_the_gradients_of_a_model_are_as_precise_as_those_of_pytorch(monkeypatch):
    model = small_model(40, n_heads=4, n_kv_heads=2)
    in_cpp = of_model(model, bf16=True)
    monkeypatch.setattr(native, "serves", lambda x: False)
    exact, rounded = of_model(model), of_model(model, bf16=True)
    for name, gradient in in_cpp.items():
        error, expected = ((x[name] - exact[name]).norm() for x in ({name: gradient}, rounded))
        assert error < 1.5 * expected + 1e-6, name


def test_log_probs_are_the_same_bit_for_bit_whether_gradients_are_recorded_or_not():
    """So the ratio of an update's first step is exactly 1."""
    model = small_model(40)
    ids = torch.randint(40, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    recorded, _ = masked_logps(model, ids, mask)
    with torch.no_grad():
        plain, _ = masked_logps(model, ids, mask)
    assert torch.equal(recorded.detach(), plain)


@torch.no_grad()
def nudge(model):
    """Adapters begin with a matrix of zeros, behind which nothing has a gradient."""
    for weight in model.parameters():
        weight += 0.01


def of_model(model, bf16: bool = False) -> dict:
    """The gradients of some loss by name."""
    model.zero_grad()
    ids = torch.randint(40, (3, 37), generator=torch.Generator().manual_seed(0))
    with autocast(ids.device, bf16):
        logps, entropies = masked_logps(model, ids, ids > 5, entropy=True)
    (logps.square().mean() + entropies.mean()).backward()
    learned = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
    assert all(grad.any() for name, grad in learned.items() if "router" not in name)
    return {name: grad.clone() for name, grad in learned.items()}
