"""The memory that a run is predicted to need, against what PyTorch keeps, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from conftest import small_model

from nanotir import graphs, memory, native, threads
from nanotir.config import build
from nanotir.logps import autocast, in_bf16
from nanotir.lora import adapt
from nanotir.memory import check_memory, predicted_peak, saved_by, sizes_of
from nanotir.problems import load
from nanotir.routing import Routing
from nanotir.trajectory import Format

SHAPES = {
    "dense": {"qk_norm": False, "token_shifts": 0},
    "query and key norms": {},
    "a key head for each query head": {"n_kv_heads": 4},
    "wide feed-forward": {"d_ff": 512},
    "experts": {"n_experts": 4},
    "experts and a shared one": {"n_experts": 8, "d_shared": 32, "n_experts_per_token": 3},
}
ROWS, LENGTH = 4, 64


def about(size: float, rel: float):
    """Without C++, where PyTorch keeps what its formulas are made of, to an eighth."""
    return pytest.approx(size, rel=rel if native.formulas(torch.float32) else 0.125)


def kept_bytes(model, selected=None) -> int:
    """Bytes of the storages, weights excepted, that autograd keeps of a forward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % model.config.vocab_size
    routing = Routing() if model.config.n_experts else None
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.hidden(ids, routing=routing, mask=selected)
    assert hidden.requires_grad
    return sum(size for size, _ in kept.values())


def predicted_bytes(
    model, rank: int = 0, learned: int = ROWS * LENGTH, bf16: bool = False
) -> float:
    sizes = sizes_of(model, bf16, rank)
    return saved_by(model.config, sizes, ROWS * LENGTH, learned, entropy=False)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_activations_are_what_autograd_keeps(shape, dtype):
    model = small_model(40, d_model=64, **SHAPES[shape]).to(dtype)
    assert predicted_bytes(model) == about(kept_bytes(model), rel=0.05)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if "experts" not in shape])
def test_predicted_activations_are_what_autograd_keeps_under_autocast(shape):
    model = small_model(40, d_model=64, **SHAPES[shape])
    matrices = [w for name, w in model.named_parameters() if w.dim() == 2 and "embed" not in name]
    with autocast(torch.device("cpu"), True):
        kept = kept_bytes(model)
        if torch.is_autocast_enabled("cpu"):
            kept -= 2 * sum(matrix.numel() for matrix in matrices)  # their copies
    assert predicted_bytes(model, bf16=True) == about(kept, rel=0.02)


@pytest.mark.parametrize("shape", ["dense", "experts and a shared one"])
def test_predicted_activations_of_a_model_with_adapters_are_what_autograd_keeps(shape):
    model = small_model(40, d_model=64, n_layers=4, **SHAPES[shape])
    adapt(model, 8)
    assert predicted_bytes(model, rank=8) == about(kept_bytes(model), rel=0.1)


def test_the_last_feed_forward_layer_keeps_the_learned_tokens_alone():
    model = small_model(40, d_model=64)
    selected = torch.arange(LENGTH).expand(ROWS, LENGTH) >= LENGTH - 16
    predicted = predicted_bytes(model, learned=ROWS * 16)
    assert predicted == about(kept_bytes(model, selected), rel=0.05)
    assert predicted < 0.85 * predicted_bytes(model)


@pytest.fixture
def run(tokenizer):
    config = build({"rl.beta": 0.1, "sampler.max_rows": 16})
    problems = load("generated", n=8)
    return SimpleNamespace(
        model=small_model(len(tokenizer)),
        config=config,
        tokenizer=tokenizer,
        format=Format(),
        problems=problems,
        held_out=problems[:2],
    )


def total(run, phase: str, **settings) -> float:
    return sum(predicted_peak(run.model, build(settings), 30)[phase].values())


def test_checkpointing_needs_less_and_a_larger_micro_batch_more(run):
    settings = {"rl.micro_batch_tokens": 8192}
    usual = total(run, "RL", **settings)
    assert total(run, "RL", gradient_checkpointing=True, **settings) < 0.8 * usual
    assert total(run, "RL", **{"rl.micro_batch_tokens": 16384}) > 1.8 * usual


def test_every_phase_has_its_optimisers_moments_and_rl_its_reference(run):
    size = sum(weight.nbytes for weight in run.model.parameters())
    matrices = sum(w.nbytes for w in run.model.blocks.parameters() if w.dim() == 2)
    peaks = predicted_peak(run.model, run.config, 30)
    assert peaks["imitation"]["moments"] == 2 * size - matrices
    assert peaks["RL"]["moments"] == 2 * size
    assert peaks["RL"]["reference"] == size
    assert set(predicted_peak(run.model, build({"rl.steps": 0}), 30)) == {"imitation", "sampling"}


def test_every_worker_has_the_weights_in_every_phase(run):
    weights = memory.bytes_of(run.model.parameters())
    threads.use_threads(3)
    peaks = predicted_peak(run.model, run.config, 20)
    assert [parts["workers"] for parts in peaks.values()] == 3 * [2 * weights]


def test_a_run_on_the_functions_of_a_student_has_no_workers(run):
    threads.use_threads(3)
    peaks = predicted_peak(run.model, build({"answers": "answers"}), 20)
    assert not any("workers" in parts for parts in peaks.values())


def sampling_weights(run, **settings) -> float:
    threads.use_threads(3)
    return predicted_peak(run.model, build(settings), 20)["sampling"]["weights"]


def test_in_bf16_every_process_that_samples_rounds_the_weights(run):
    if not in_bf16(torch.device("cpu"), True):
        pytest.skip("this processor has no instructions for bf16")
    numbers = sum(weight.numel() for weight in run.model.parameters())
    assert sampling_weights(run, **{"sampler.bf16": True}) == (4 + 3 * 2) * numbers


def test_in_fp32_every_process_that_samples_has_the_matrices_by_columns(run):
    copied = graphs.by_columns(run.model, rows=64)
    own = {w.data_ptr() for w in run.model.parameters()}
    made = [w.untyped_storage() for w in copied.parameters() if w.data_ptr() not in own]
    weights = memory.bytes_of(run.model.parameters())
    size = sum(storage.nbytes() for storage in made)
    assert sampling_weights(run) == weights + 3 * size
    assert sampling_weights(run, answers="answers") == weights + size


def test_what_fits_is_shown_and_changes_nothing(run):
    before = copy.deepcopy(run.model.state_dict())
    state = torch.get_rng_state()
    assert "GB at the peak, in RL (weights " in check_memory(run)
    assert all(torch.equal(before[name], w) for name, w in run.model.state_dict().items())
    assert all(weight.grad is None for weight in run.model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_what_does_not_fit_is_refused_with_settings_that_fit(run, monkeypatch):
    need = sum(predicted_peak(run.model, run.config, 30)["RL"].values())
    monkeypatch.setattr(memory, "free_memory", lambda model: need / 2)
    with pytest.raises(
        ValueError, match="RL needs about .* GB that are free: lower --sft"
    ) as caught:
        check_memory(run)
    assert "--rl.micro-batch-tokens to 512" in str(caught.value)
    settings = {"rl.micro_batch_tokens": 512, "rl.beta": 0.1}
    assert total(run, "RL", **settings) <= need / 2


def test_a_model_that_never_fits_is_told_other_ways(run, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda model: 1000)
    with pytest.raises(ValueError, match="take --gradient-checkpointing true, --lora"):
        check_memory(run)


def test_where_nothing_says_what_is_free_the_prediction_is_shown(run, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda model: None)
    assert check_memory(run).startswith("memory: about 0.")


def test_a_run_without_rl_is_told_what_to_lower_as_well(run, monkeypatch):
    run.config = build({"rl.steps": 0, "sampler.max_rows": 128})
    need = sum(predicted_peak(run.model, run.config, 30)["sampling"].values())
    monkeypatch.setattr(memory, "free_memory", lambda model: need - 1)
    with pytest.raises(ValueError, match="sampling needs .* lower --sampler.max-rows to 64$"):
        check_memory(run)


def test_a_setting_that_is_1_already_is_no_reason_to_give_up(run):
    run.config = build({"sampler.max_rows": 1})
    need = sum(predicted_peak(run.model, run.config, 30)["RL"].values())
    assert "--rl.micro-batch-tokens" in memory.mend(run.model, run.config, 30, need - 1)


def test_a_system_that_does_not_say_what_is_available_refuses_nothing(run, tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 1 kB\nMemFree: 1 kB\n")
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "meminfo")
    assert memory.free_memory(run.model) is None


def test_no_more_rows_are_counted_than_a_run_asks_for(run):
    few = {"eval.problems": 3, "rl.problems": 2, "rl.group_size": 2}
    four = total(run, "sampling", **few, **{"sampler.max_rows": 4})
    assert total(run, "sampling", **few, **{"sampler.max_rows": 512}) == four
    assert total(run, "sampling", **few, recipe="tora", **{"sampler.max_rows": 512}) > four


def test_the_limit_of_a_container_counts(run, tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("7000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert memory.free_memory(run.model) == 6000 + memory.bytes_of(run.model.parameters())
