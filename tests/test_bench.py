import json
from textwrap import dedent

import pytest
import torch

from nanotir import kernels
from nanotir.bench import __main__ as bench
from nanotir.bench import against, decoding, fused, shapes, training
from nanotir.bench import policy as policies
from nanotir.bench.search import search_tool
from nanotir.bench.timing import medians, timed
from nanotir.config import build
from nanotir.logps import token_logps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_figure_is_its_median_over_the_rounds_without_the_warm_up():
    def measure(number):
        return {"same": 1.0, "number": 1000.0 if number < 0 else number**2 / 3}

    assert medians(measure, rounds=5) == {"same": 1.0, "number": 1.33333}


def test_a_timed_call_gives_its_result_too():
    seconds, result = timed(divmod, 7, 2)
    assert result == (3, 1)
    assert 0 <= seconds < 1


def test_a_measurement_is_one_line_of_json(monkeypatch, capsys):
    monkeypatch.setattr(bench, "saved_runs", lambda: ["some run"])
    monkeypatch.setattr(bench, "latest_run", lambda: "some run")
    monkeypatch.setattr(bench, "policy_of", Nothing)
    monkeypatch.setitem(bench.MEASUREMENTS, "decode", lambda policy: {"ms": 1 / 3, "rows": 4})
    bench.main(["--only", "decode"])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert json.loads(said) == {"name": "decode", "ms": 0.33333, "rows": 4}


class Nothing:
    """A policy without tools."""

    def __init__(self, folder):
        self.tools = []


@pytest.fixture
def case(monkeypatch):
    """Few tokens and ids, and the kernels, where there is no GPU in Triton's interpreter."""
    pytest.importorskip("triton", reason="Triton is optional, and not installed")
    monkeypatch.setattr(kernels, "kernel_runs_on", lambda device: True)
    return fused.make_case(12, 40, DEVICE)


def test_the_fused_loss_and_its_twin_are_one_loss(case):
    whole = fused.gradient(fused.fused, case, case.logits.clone())
    twin = fused.gradient(fused.twin, case, case.logits.clone())
    assert whole.abs().max() > 0.1
    torch.testing.assert_close(whole, twin, atol=1e-4, rtol=2**-6)


def test_a_masked_token_has_no_gradient(case):
    half = case._replace(mask=torch.arange(12, device=DEVICE)[None] % 2 == 0)
    for loss in (fused.fused, fused.kernels):
        gradient = fused.gradient(loss, half, case.logits.clone())[0]
        assert (gradient[1::2] == 0).all()
        assert torch.equal(gradient[::2], fused.gradient(loss, case, case.logits.clone())[0][::2])


def test_the_kernels_alone_have_the_gradient_of_log_probs(case):
    found = fused.gradient(fused.kernels, case, case.logits.clone())
    logits = case.logits.detach().requires_grad_()
    token_logps(logits, case.ids).sum().backward()
    torch.testing.assert_close(found, logits.grad, atol=1e-4, rtol=2**-6)


def test_errors_of_the_fused_loss_and_its_twin_are_those_of_bf16(case):
    errors = fused.errors(case, 8)
    assert set(errors) == {"gradient_error", "gradient_error_twin"}
    assert all(0 < error < 2**-7 for error in errors.values())


def test_without_a_gpu_the_fused_loss_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fused.fused_loss(None) == {"skipped": "needs a GPU"}


def test_the_search_of_a_few_documents_can_be_measured():
    figures = search_tool(None, documents=50, readers=2, queries=7)
    assert set(figures) == {"p50_ms", "p99_ms", "processor_ms", "build"}
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


# The policy that is measured.

FIGURES = {  # measurements that are short on a small policy, and what they must have found
    "rl_step": {"rollout", "rescore", "update", "new_tokens", "calls"},
    "decode": {"ms_1_rows", "ms_64_rows", "ms_256_rows"},
    "sft_step": {"seconds", "tokens_per_second"},
    "rollout_by_workers": {"alone", "shared", "ratio", "ids"},
}


@pytest.fixture(scope="module")
def policy(shared_tools):
    """A small policy that has imitated for two steps."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policies, "RunConfig", small_config)
        yield policies.cold_start(steps=2)


def small_config():
    sizes = {"n_layers": 1, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "d_ff": 32}
    values = {f"model.{name}": size for name, size in sizes.items()}
    return build({**values, "sampler.max_new_tokens": 4})


@pytest.fixture
def one_round(monkeypatch):
    monkeypatch.setattr(training, "medians", lambda measure: medians(measure, rounds=1))


@pytest.mark.parametrize("name", FIGURES)
def test_a_small_policy_can_be_measured(policy, one_round, name):
    figures = bench.MEASUREMENTS[name](policy)
    assert FIGURES[name] <= set(figures)
    assert all(value >= 0 for value in figures.values())


@pytest.mark.parametrize("name", ["decode_shapes", "ragged_rollout"])
def test_fixed_shapes_can_be_measured(policy, monkeypatch, name):
    monkeypatch.setattr(shapes, "T", shapes.T | {"n_layers": 1, "d_model": 16, "d_ff": 16})
    monkeypatch.setattr(shapes, "S", shapes.T)
    for module in (shapes, decoding):
        monkeypatch.setattr(module, "medians", lambda measure, rounds: medians(measure, rounds=1))
    figures = bench.MEASUREMENTS[name](policy)
    assert len(figures) == 6
    assert all(value > 0 for value in figures.values())


def test_a_measurement_leaves_the_policy_as_it_is(policy, one_round):
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    for name in FIGURES:
        bench.MEASUREMENTS[name](policy)
    torch.testing.assert_close(policy.model.state_dict(), before, rtol=0, atol=0)


# Against another checkout.


def checkout(folder, figures: str):
    """A checkout whose every measurement has these figures. Its run is a file: who measured what.

    In `figures`, n is the number of measurements so far, of all checkouts.
    """
    package = folder / "nanotir" / "bench"
    package.mkdir(parents=True)
    main = f"""
        import json, os, sys
        _, only, name, run, file = sys.argv
        log = open(file, "a+")
        log.seek(0)
        n = len(log.readlines())
        print(os.path.basename(os.getcwd()), only, name, run, file=log)
        print(json.dumps({{"name": name, **{figures}}}))
    """
    (package / "__main__.py").write_text(dedent(main))
    return folder


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """compared(figures here, figures there): what --against prints, and the measurements made."""

    def run(here: str, there: str):
        monkeypatch.setattr(against, "HERE", checkout(tmp_path / "new", here))
        old = checkout(tmp_path / "old", there)
        monkeypatch.chdir(tmp_path)
        bench.main(["--only", "decode", "--against", str(old), "--run", "log"])
        said = capsys.readouterr().out
        return json.loads(said), (tmp_path / "log").read_text().splitlines()

    return run


def test_the_two_checkouts_are_measured_in_turn_with_the_same_run(compared):
    _, log = compared("{}", "{}")
    assert log == ["new --only decode --run", "old --only decode --run"] * against.ROUNDS


def test_each_figure_is_the_other_checkouts_relative_to_this_one(compared):
    said, _ = compared("{'ms': 2 + n, 'rows': 64}", "{'ms': 4 * n, 'rows': 64, 'more': 1}")
    # n is 0, 2, 4 here and 1, 3, 5 there: 4 / 2, 12 / 4 and 20 / 6.
    assert said == {"name": "decode", "ms": [3.0, 2.0, 3.333], "rows": [1.0, 1.0, 1.0]}


def test_figures_that_are_0_or_no_numbers_have_no_ratio(compared):
    said, _ = compared("{'left': 0, 'skipped': 'x', 'ms': 1}", "{'left': 1, 'skipped': 'x'}")
    assert said == {"name": "decode"}


def test_a_checkout_that_cannot_measure_is_one_line(compared, capsys):
    with pytest.raises(SystemExit):
        compared("{}", "{'ms': 1 / 0}")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("cannot measure decode: ZeroDivisionError: division by zero")


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no checkout of nanotir"):
        against.compare(["decode"], str(tmp_path), "run")
