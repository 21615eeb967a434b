"""What several tests share: a small tokenizer, a small model, and a model that follows a script."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.nn as nn

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: run kernels in Python

from nanotir import config, policy, threads
from nanotir.demonstrate import corpus
from nanotir.model import ModelConfig, Transformer, layout_of
from nanotir.problems import load
from nanotir.problems.generate import documents
from nanotir.tokenizer import Tokenizer
from nanotir.tools import PythonTool, SearchTool
from nanotir.trajectory import Format

SHARED = Path(__file__).resolve().parents[2] / "shared"
torch.set_num_threads(1)
# Where the tests are started in the background, a shell has SIGINT ignored by all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--mutants", action="store_true", help="try all variants of the exercises")
    parser.addoption("--smollm2", metavar="FOLDER", help="SmolLM2-135M-Instruct, with reference.pt")
    parser.addoption("--answers", metavar="FOLDER", help="test the functions in these answers")


HERE = Path(__file__).parent
FOLDERS = sorted({path.parent for path in HERE.glob("*/test_*.py")})
WAITING = [HERE / "tools"]  # wait more than they compute
HALF = [path for path in FOLDERS if path not in WAITING]  # of the others, with three files
HALF += [HERE / f"test_{name}.py" for name in ("processes", "kernels", "graphs")]
OTHERS = pytest.StashKey[list]()  # the processes that run these two parts, and what they say


def pytest_configure(config):
    if folder := config.getoption("--answers"):
        from nanotir.exercises.answers import answered

        answers = answered(folder)
        answers.__enter__()
        config.add_cleanup(lambda: answers.__exit__(None, None, None))
    if not config.invocation_params.args:
        # All tests: other processes run those in folders, and this one most of the files here.
        config.stash[OTHERS] = [started(part) for part in (HALF, WAITING)]


def started(part: list) -> tuple:
    """A process that runs a part of the tests, and the file of what it says."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *part]
    said = tempfile.TemporaryFile("w+")
    return subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT), said


def pytest_ignore_collect(collection_path, config):
    """With --answers, the tests of the exercises would test the answers against themselves."""
    if config.getoption("--answers") and collection_path.name == "exercises":
        return True
    return True if OTHERS in config.stash and collection_path in HALF + WAITING else None


def pytest_sessionfinish(session, exitstatus):
    """A test that fails in another process fails the whole. An interrupt ends all."""
    for process, _ in session.config.stash.get(OTHERS, []):
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            process.send_signal(signal.SIGINT)
        code = process.wait()
        code = 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code
        session.exitstatus = session.exitstatus or code


def pytest_unconfigure(config):
    for _, said in config.stash.get(OTHERS, []):
        said.seek(0)
        print(f"\nThe tests that another process has run:\n\n{said.read()}", end="")


@pytest.fixture(autouse=True)
def one_thread():
    """Whatever a run sets is undone, before the fixtures of the next file are made, too."""
    threads.use_threads(1)
    yield
    threads.use_threads(1)


@pytest.fixture(scope="session", autouse=True)
def bf16_on_any_processor():
    """The same is tested on all processors: without instructions for bf16, slower ones are used."""
    with pytest.MonkeyPatch.context() as patched:
        with_instructions_for_bf16(patched, True)
        yield


def with_instructions_for_bf16(patched: pytest.MonkeyPatch, able: bool):
    """As on a processor with such instructions, or as on one without them."""
    found = torch.cpu.get_capabilities() | {"avx512_bf16": able}
    patched.setattr(torch.cpu, "get_capabilities", lambda: found)


@pytest.fixture(scope="session", autouse=True)
def sources_read_once():
    """The comments of the settings are read once in a session, not for every command line."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(config, "comments_of", functools.cache(config.comments_of))
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train(corpus(load("generated", n=200), documents()[:100]), 400)


@pytest.fixture(scope="session")
def python():
    with PythonTool(timeout=5.0) as tool:
        yield tool


@pytest.fixture(scope="session")
def search():
    with SearchTool(documents()) as tool:
        yield tool


@pytest.fixture(scope="module")
def shared_tools(python, search):
    """A module's runs use the session's tools, because new fork servers take a second to start."""
    tools = {"python": python, "search": search}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            policy,
            "open_tools",
            lambda config: [tools[name] for name in config["tools"].split(",") if name],
        )
        for tool in tools.values():
            patched.setattr(tool, "close", lambda: None)
        yield


@pytest.fixture(scope="session")
def layers() -> dict[str, bool]:
    """The sandbox's layers, and which of them are in force on this machine."""
    command = [sys.executable, "-m", "nanotir.tools.sandbox"]
    shown = subprocess.run(
        command, cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    return {line.split()[0]: "in force" in line for line in shown.stdout.splitlines()}


@pytest.fixture(scope="session")
def needs(layers):
    def check(*names):
        if missing := [name for name in names if not layers[name]]:
            pytest.skip(f"not in force on this machine: {', '.join(missing)}")

    return check


@pytest.fixture(scope="module")
def demonstrations(tokenizer):
    """Two sums, each by one call, of nearly the same length: they share a micro-batch."""
    rows = []
    for question, code, value in (("2+3?", "2+3", "5"), ("20 plus 30?", "20+30", "50")):
        call = [("python", code), ("output", value)]
        pieces = [("text", "I add."), *call, ("text", f"It is {value}.")]
        rows.append(Format().trajectory(tokenizer, question, pieces))
    return rows


def small_model(vocab_size: int, seed: int = 0, **settings) -> Transformer:
    """A random transformer with logits so different that its choices are not left to chance."""
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 64}
    sizes |= {"token_shifts": 2}
    settings = sizes | {"max_seq_len": 256} | settings
    model = Transformer(ModelConfig(vocab_size=vocab_size, **settings))
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        mean, std = (1.0, 0.1) if weight.dim() == 1 else (0.0, 0.3)
        nn.init.normal_(weight, mean, std, generator=generator)
    return model


def assert_same_gradient(gradient, expected, rounding: float = 2e-6):
    """The difference is measured by its norm: a small element may be a sum of large ones."""
    assert (gradient - expected).norm() <= rounding * expected.norm()


class ScriptedModel(nn.Module):
    """Gives the logits that `logits_of(ids so far)` says.

    What it has read it keeps, as a transformer does, in its KV cache and nowhere else. Ids that
    were never fed, fed twice or copied to the wrong row lead to another script.
    """

    def __init__(self, vocab_size: int, logits_of, max_seq_len: int = 256):
        super().__init__()
        self.config = ModelConfig(
            vocab_size=vocab_size,
            n_layers=1,
            d_model=2,
            n_heads=1,
            n_kv_heads=1,
            d_ff=1,
            max_seq_len=max_seq_len,
        )
        self.embed = nn.Embedding(1, 1)
        self.logits_of, self.fed = logits_of, []

    def __deepcopy__(self, memo):
        return self  # what a copy of it is fed is seen here

    def hidden(self, ids, positions=None, cache=None):
        layout = layout_of(ids, positions, cache, self.config)
        self.fed.append(ids.shape)
        stored = ids[:, :, None, None].float().expand(-1, -1, 1, 2)  # (B, T, 1, 2)
        keys, _ = cache.write(0, stored, stored, layout.positions, layout.bias.shape[-1])
        return keys[..., 0, 0].long(), layout.positions

    def forward(self, ids, positions=None, cache=None):
        read, positions = self.hidden(ids, positions, cache)
        rows = [
            [self.logits_of(tuple(row[: end + 1].tolist())) for end in ends]
            for row, ends in zip(read, positions.tolist())
        ]
        return torch.stack([torch.stack(row) for row in rows])  # (B, T, V)


def follow(tokenizer, script):
    """logits_of for a ScriptedModel: script(ids written since the prompt) is the next id."""
    from nanotir.tokenizer import ASSISTANT

    def logits_of(ids):
        start = (
            ids.index(tokenizer.tags[ASSISTANT]) + 1
            if tokenizer.tags[ASSISTANT] in ids
            else len(ids)
        )
        logits = torch.full((len(tokenizer),), -30.0)
        logits[script(list(ids[start:]))] = 0.0
        return logits

    return logits_of
