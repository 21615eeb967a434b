"""Low-rank adapters: what they compute and learn, and what a checkpoint holds of them."""

import json
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn as nn
from conftest import small_model

import train
from nanotir import held_out, optim
from nanotir.config import parse
from nanotir.lora import (
    SCALE,
    Adapted,
    adapt,
    load_weights,
    merged,
    weights_of,
    whole_weights,
)
from nanotir.policy import load_run
from nanotir.reference import starting_policy
from nanotir.run import Run, Stopped
from nanotir.run_files import load_state
from nanotir.sampler import Sampler

IDS = torch.arange(24).view(2, 12)


def adapted_model(seed: int = 0, **settings):
    """A model whose adapters have learned something."""
    model = small_model(40, **settings)
    adapt(model, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(".B"):
            nn.init.normal_(weight, 0.0, 0.1, generator=generator)
    return model


def test_new_adapters_change_nothing():
    model = small_model(40)
    expected = model(IDS)
    adapt(model, 4)
    assert torch.equal(model(IDS), expected)


@pytest.mark.parametrize("experts", [0, 4])
def test_adapters_are_all_that_learns_and_every_matrix_of_a_block_has_one(experts):
    model = small_model(40, n_experts=experts, d_shared=8 * bool(experts))
    matrices = [n for n, m in model.blocks.named_modules() if isinstance(m, nn.Linear)]
    adapt(model, 4)
    found = [n for n, m in model.blocks.named_modules() if isinstance(m, Adapted)]
    assert found == [name for name in matrices if not name.endswith("router")]
    learned = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learned == {f"blocks.{name}.{side}" for name in found for side in "AB"}


def test_equal_seeds_make_equal_adapters():
    first, equal, other = (adapted_model(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), equal.parameters()))
    name = "blocks.0.ff.down.A"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_the_first_step_of_full_rank_adapters_is_that_of_the_whole_matrix():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=generator), torch.randn(50, 8, generator=generator)
    linear = nn.Linear(6, 8, bias=False)
    layer = Adapted(linear, 6, generator)
    (linear(x) - y).square().mean().backward()
    expected = linear.weight.grad
    linear.requires_grad_(False)
    (layer(x) - y).square().mean().backward()
    change = SCALE * layer.B.grad @ layer.A  # of the sum of W and its adapter
    torch.testing.assert_close(change, SCALE**2 * expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", [0, 4])
def test_merged_adapters_compute_the_same(experts):
    model = adapted_model(n_experts=experts)
    expected = model(IDS)
    assert not torch.allclose(expected, small_model(40, n_experts=experts)(IDS), atol=1e-2)
    with merged(model):
        torch.testing.assert_close(model(IDS), expected, atol=1e-5, rtol=1e-5)


def test_after_merging_everything_is_as_it_was():
    model = adapted_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    expected = model(IDS)
    with pytest.raises(ZeroDivisionError), merged(model):
        raise ZeroDivisionError
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert torch.equal(model(IDS), expected)


def test_sampling_computes_with_merged_weights(tokenizer, monkeypatch):
    model = small_model(len(tokenizer))
    adapt(model, 4)
    layer, seen = model.blocks[0].ff.down, []
    layer.register_forward_hook(lambda *_: seen.append(layer.whole is not None))
    Sampler(model, tokenizer).generate(["2+3?"], n=2)
    assert seen and all(seen)


def test_a_rank_above_a_matrixs_smaller_side_is_refused():
    with pytest.raises(ValueError, match="--lora 33 is no low rank for this model: at most 32"):
        adapt(small_model(40), 33)


def test_adapters_stay_in_fp32_on_weights_in_bf16():
    model = small_model(40).to(torch.bfloat16)
    adapt(model, 4)
    model(IDS).float().sum().backward()
    assert {w.grad.dtype for w in model.parameters() if w.requires_grad} == {torch.float32}


def test_adapters_are_learned_by_adamw_alone():
    model = adapted_model()
    (adamw,) = optim.muon_and_adamw(model, muon_lr=0.1, adam_lr=0.01)
    assert len(adamw.param_groups[0]["params"]) == len(weights_of(model))


def test_the_reference_shares_the_frozen_weights_and_keeps_its_own_adapters():
    model = adapted_model()
    expected = model(IDS)
    run = SimpleNamespace(state={})
    reference = starting_policy(model, run)
    assert set(run.state["reference"]) == set(weights_of(model))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    assert torch.equal(reference(IDS), expected)
    assert reference.embed.weight is model.embed.weight


def test_the_best_weights_of_a_run_with_adapters_are_adapters_that_know_their_weights(tmp_path):
    run = SimpleNamespace(model=adapted_model(), out=tmp_path, state={"best": {}})
    held_out.keep_best(run)
    load_state(tmp_path / "best", small_model(40))
    with pytest.raises(ValueError, match="of adapters to other weights"):
        load_state(tmp_path / "best", small_model(40, seed=1))
    state = torch.load(tmp_path / "best" / "state.pt", weights_only=True)
    assert {name[-2:] for name in state["model"]} == {".A", ".B"}


def test_saved_adapters_are_merged_into_a_model_without():
    model, plain = adapted_model(), small_model(40)
    load_weights(plain, weights_of(model))
    torch.testing.assert_close(plain(IDS), model(IDS), atol=1e-5, rtol=1e-5)


# Whole runs.

PROBE = (
    "--preset probe --problems 40 --data plain:itself --eval-data plain:itself --eval.problems 1 "
    "--sft.steps 2 --rl.steps 1 --tools python --sampler.max_new_tokens 16 --threads 1"
).split()
ADAPTED = (
    "--lora 4 --sft.adam-lr 0.02 --sft.steps 4 --sft.batch-size 8 --rl.beta 0.1 --eval.every 4"
).split()


@pytest.fixture(scope="module")
def base(shared_tools, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    train.train(parse([*PROBE, "--out", str(out), "--model.n-experts", "4", "--rl.steps", "0"]))
    return out


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    start(base, out)
    return out


def start(base, out):
    train.train(parse([*PROBE, "--out", str(out), "--init", str(base), *ADAPTED]))


def saved(out, part: str = "checkpoint") -> dict:
    return torch.load(out / part / "state.pt", weights_only=True)


def test_a_checkpoint_holds_adapters_alone(base, unbroken):
    assert {name.rpartition(".")[2] for name in saved(unbroken)["model"]} == {"A", "B"}
    assert {name.rpartition(".")[2] for name in saved(unbroken)["reference"]} == {"A", "B"}
    assert any(weight.any() for name, weight in saved(unbroken)["model"].items() if ".B" in name)


def test_so_does_what_is_kept_of_the_best(unbroken):
    best = saved(unbroken, "best")
    assert best["model"].keys() == saved(unbroken)["model"].keys()
    assert best["frozen"] == saved(unbroken)["frozen"] != 0


def test_a_stopped_and_resumed_run_with_adapters_equals_an_unbroken_one(
    base, unbroken, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    finish = Run.finish_step

    def stop(self, number, *arguments, **settings):
        self.stop_requested = self.state["phase"] == "sft" and number == 2
        finish(self, number, *arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(Run, "finish_step", stop)
        start(base, out)
    train.train(parse(["--resume", str(out)]))
    for name, weight in saved(unbroken)["model"].items():
        assert torch.equal(weight, saved(out)["model"][name])


def test_a_run_with_adapters_is_used_like_any_other(base, unbroken):
    _, model, *_ = load_run(unbroken)
    _, start, *_ = load_run(base)
    assert model.state_dict().keys() == start.state_dict().keys()
    changed = {
        n for n, w in model.state_dict().items() if not torch.equal(w, start.state_dict()[n])
    }
    assert changed and all(name.startswith("blocks.") for name in changed)


def test_memory_is_checked_before_a_checkpoint_takes_its_share(unbroken, tmp_path, monkeypatch):
    shutil.copytree(unbroken, tmp_path / "run")
    held = []
    monkeypatch.setattr(train, "check_memory", lambda run: held.extend(run.state["optimizers"]))
    train.train(parse(["--resume", str(tmp_path / "run")]))
    assert saved(tmp_path / "run")["optimizers"] and not held


@pytest.fixture
def moved(base, unbroken, tmp_path):
    """A copy of the run with adapters, and of the run whose weights it needs."""
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(unbroken, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["init"] = str(tmp_path / "base")
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_adapters_without_the_folder_that_they_began_from_are_refused(moved):
    shutil.rmtree(moved / "base")
    for use in (load_run, lambda folder: train.train(parse(["--resume", str(folder)]))):
        with pytest.raises(ValueError, match="base' is not a run folder"):
            use(moved / "run")


def test_adapters_to_weights_that_have_changed_are_refused(moved):
    path = moved / "base" / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["norm.weight"][0] += 1e-6
    torch.save(state, path)
    uses = (load_run, partial(load_run, best=True))
    for use in (*uses, lambda folder: train.train(parse(["--resume", str(folder)]))):
        with pytest.raises(ValueError, match="of adapters to other weights than these: restore"):
            use(moved / "run")


def test_adapters_need_weights_to_begin_from():
    with pytest.raises(SystemExit):
        parse(["--lora", "4"])


def test_the_sums_stay_until_the_last_thread_has_left():
    model = small_model(40)
    adapt(model, 2)
    first, second = merged(model), merged(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert all(weight is not None for weight in whole_weights(model))
    second.__exit__(None, None, None)
    assert any(weight is None for weight in whole_weights(model))
