"""Wrong invocations of all commands: exit code 2, one line that says why, and nothing is made."""

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_model

import sample
import train
from nanotir import commands
from nanotir.commands import Parser, one_line
from nanotir.config import build
from nanotir.run import Run
from nanotir.tools import DeadTool
from nanotir.trajectory import Format

ROOT = Path(__file__).resolve().parents[1]
SMALL = "--problems 9 --eval.problems 4 --model.d_model 32 --model.n_layers 1".split()
ANY = "--eval-data generated"

# {command: {arguments: a word of the one line that they get}}. The files are those of `desk`.
WRONG = {
    "train.py": {
        "--sed 3": "did you mean '--seed'",
        "--see 3": "did you mean '--seed'",
        "--rl.step 3": "did you mean '--rl.steps'",
        "--rl.stepz=3": "did you mean '--rl.steps'",
        "-seed 3": "'-seed'",
        "--seed": "expected one argument",
        "--seed three": "invalid int value",
        "--seed 1.5": "invalid int value",
        "--seed ''": "invalid int value",
        "--rl.lr fast": "invalid float value",
        "--rl.lr ''": "invalid float value",
        "--rl.dynamic maybe": "neither true nor false",
        "--rl.dynamic": "expected one argument",
        "generated": "belongs to no flag",
        "1 --seed 2": "'1' belongs to no flag",
        "--out ''": "--out is empty",
        "--init ''": "--init is empty",
        "--resume ''": "--resume is empty",
        "--resume=": "--resume is empty",
        "--eval-data ''": "--eval-data is empty",
        "--search.path ''": "--search.path is empty",
        "--data ''": "--data is empty",
        "--preset ''": "--preset is empty",
        "--preset tinny": "'tiny'",
        "--recipe tapoo": "'tapo'",
        "--format xml": "no format 'xml'",
        "--tools pyton": "no tool 'pyton'",
        "--tools python,,x": "no tool 'x'",
        "--device tpu": "no device 'tpu'",
        "--data generated:mull": "mul",
        f"--data gsm8q:x {ANY}": "'gsm8k'",
        f"--data jsonl: {ANY}": "cannot read",
        f"--data jsonl:nowhere {ANY}": "nowhere",
        f"--data jsonl:folder {ANY}": "folder",
        f"--data jsonl:empty.jsonl {ANY}": "no problems in",
        f"--data jsonl:binary.jsonl {ANY}": "not UTF-8",
        f"--data jsonl:bad.jsonl {ANY}": "bad.jsonl:2",
        f"--data gsm8k:good.jsonl {ANY}": "good.jsonl:1",
        f"--data math:good.jsonl {ANY}": "good.jsonl:1",
        "--data jsonl:good.jsonl": "--eval-data",
        "--eval-data jsonl:nowhere": "nowhere",
        "--eval-data jsonl:bad.jsonl": "bad.jsonl:2",
        "--search.path nowhere": "nowhere",
        "--search.path folder": "cannot read documents",
        "--out folder": "exists already",
        "--out good.jsonl": "exists already",
        "--out good.jsonl/run": "cannot make",
        "--resume nowhere": "not a run folder",
        "--resume folder": "not a run folder",
        "--resume good.jsonl": "not a run folder",
        "--resume run --seed 1": "leave out --seed",
        "--resume run --out other": "leave out --out",
        "--init nowhere": "not a run folder",
        "--init folder": "not a run folder",
        "--init run --model.n-layers 3": "leave out --model.n-layers",
        "--init run --format fences": "add --format tags",
        "--init good.jsonl": "nor one of Hugging Face's",
        "--init pretrained --lora 4": "add --format text",
        "--preset smollm2": "name its folder by --init",
        "--resume pretrained": "is a Hugging Face folder",
        "--model.n-heads 3": "multiple of",
        "--model.vocab-size 100": "at least",
        "--problems 0": "problems",
        "--problems -1": "problems",
        "--level 0": "level",
        "--threads 0": "threads",
        "--save-every 0": "--save-every must be at least 1",
        "--eval.problems 0": "--eval.problems must be",
        "--eval.k 4": "number of samples",
        "--eval.modes tool": "'tools'",
        "--teacher.quality 2": "between 0 and 1",
        "--teacher.format words": "no demonstration format",
        "--rl.scale std": "no scale 'std'",
        "--rl.loss-type ppo": "no loss_type",
        "--rl.group-size 1": "at least 2",
        "--rl.budgets 2,x": "whole numbers",
        "--rl.observations learned": "--sampler.forge true",
        "--rl.fused true --rl.entropy-coef 0.1": "leave out rl.entropy_coef",
        "--sampler.temperature 0": "RL needs",
        "--sampler.top-p 0.9": "RL needs",
        "--sampler.max-rows 0": "--sampler.max-rows must be",
        "--reward.length 2": "wrong answer could earn more",
        "--python.workers 0": "workers",
        "--recipe tora --problems 60 --tora.covered 0.001": "none to imitate",
        "--recipe tora --tora.covered 0": "covered",
        "--recipe autocode --autocode.samples 1": "at least 2",
        "--recipe autocode --format fences": "needs tags, which --format fences",
        "--recipe autocode --format text": "needs tags, which --format text",
    },
    "sample.py": {
        "--tempratur 1 q": "did you mean '--temperature'",
        "--temp 1 q": "'--temperature'",
        "--run run --n 0 q": "--n",
        "--run run --n -2 q": "--n",
        "--run run --n two q": "invalid int value",
        "--run run --n": "expected one argument",
        "--run run --temperature -1 q": "temperature",
        "--run run --temperature hot q": "invalid float value",
        "--run run --seed x q": "invalid int value",
        "--run run --json=yes q": "ignored explicit argument",
        "--run '' q": "--run is empty",
        "--run nowhere q": "not a run folder",
        "--run folder q": "not a run folder",
        "--run good.jsonl q": "not a run folder",
        "''": "question is empty",
        "What is 2?": "no trained run in runs/",
        f"--run run {'long ' * 300}": "leaves no room",
        "--run pretrained q": "is a Hugging Face folder, not a run: python train.py --init",
        "--run run --best q": "has kept no best weights",
    },
    "evaluate": {
        "": "required: --run",
        "run": "required: --run",
        "--run": "expected one argument",
        "--run ''": "--run is empty",
        "--run nowhere": "not a run folder",
        "--run folder": "not a run folder",
        "--run run more": "'more' belongs to no flag",
        "--run pretrained": "is a Hugging Face folder",
        "--run run --best": "has kept no best weights",
        "--run run --problem 3": "did you mean '--problems'",
        "--rnu run": "did you mean '--run'",
        "--run run --problems 0": "must be at least 1",
        "--run run --problems -1": "must be at least 1",
        "--run run --problems x": "invalid int value",
        "--run run --n 0": "must be at least 1",
        "--run run --k 4": "number of samples",
        "--run run --n 4 --k 1,5": "number of samples",
        "--run run --n 4 --k one": "number of samples",
        "--run run --k ''": "--k is empty",
        "--run run --modes tool": "did you mean 'tools'",
        "--run run --modes ''": "--modes is empty",
        "--run run --seed x": "invalid int value",
        "--run run --data ''": "--data is empty",
        "--run run --data jsonl:nowhere": "nowhere",
        "--run run --data jsonl:bad.jsonl": "bad.jsonl:2",
        "--run run --data generatd": "did you mean 'generated'",
        "--run run --json yes": "'yes' belongs to no flag",
    },
    "lab": {
        "nothing": "no experiment 'nothing'",
        "--quik": "did you mean '--quick'",
        "--seeds 0": "--seeds: it must be between 1",
        "--seeds 99": "--seeds: it must be between 1",
        "--seeds x": "invalid int value",
        "--workers -1": "--workers: it must be at least 0",
        "--quick --keep": "leave out --quick",
        "--write file": "goes with --table",
        "--write ''": "--write is empty",
        "--table all": "leave out the names",
        "--table --write nowhere": "cannot read 'nowhere'",
        "--table --write good.jsonl": "has no lines",
        "--table --write folder": "cannot read 'folder'",
        "''": "names is empty",
    },
    "bench": {
        "--only decod": "did you mean 'decode'",
        "--only ''": "--only is empty",
        "--only": "expected one argument",
        "--onlly decode": "did you mean '--only'",
        "decode": "belongs to no flag",
        "--run nowhere": "not a run folder",
        "--run folder": "not a run folder",
        "--run ''": "--run is empty",
    },
    "page": {
        "": "required: run",
        "''": "run is empty",
        "nowhere": "not a run folder",
        "folder": "not a run folder",
        "good.jsonl": "not a run folder",
        "run run run": "one run or two",
        "run run --pictures": "drawn from one",
        "run --out folder": "Is a directory: 'folder'",
        "run --out nowhere/page.html": "No such file or directory",
        "run --out ''": "--out is empty",
        "run --picture": "did you mean '--pictures'",
        "--run run": "give its value alone, without '--run'",
        "run nowhere": "not a run folder",
    },
    "replay": {
        "": "required: FILE",
        "''": "file is empty",
        "nowhere": "nowhere",
        "folder": "folder",
        "empty.jsonl": "no problems in",
        "binary.jsonl": "not UTF-8",
        "bad.jsonl": "bad.jsonl:1",
        "good.jsonl": "good.jsonl:1",
        "good.jsonl bad.jsonl": "'bad.jsonl' belongs to no flag",
        "--file good.jsonl": "no flag '--file'",
    },
    "tools.sandbox": {
        "--hepl": "did you mean '--help'",
        "cold": "'cold' belongs to no flag",
        "show": "'show' belongs to no flag",
        "''": "'' belongs to no flag",
        "warm": "'warm' belongs to no flag",
        "bare folder": "'bare' belongs to no flag",
    },
}
DAMAGES = {  # of a run folder, and a word of the line that any command then says
    "config.json is missing": "not a run folder",
    "config.json is cut": "not JSON",
    "config.json is a list": "not the config",
    "config.json has no model": "not the config",
    "config.json has another model": "not of this model's config",
    "config.json has a new setting": "heads",
    "tokenizer.json is missing": "no readable tokenizer",
    "tokenizer.json is cut": "no readable tokenizer",
    "state.pt is missing": "no checkpoint in",
    "state.pt is empty": "damaged",
    "state.pt is cut": "damaged",
}
READERS = {  # commands that read a run folder, and their arguments before it
    "train.py": "--resume",
    "sample.py": "q --run",
    "evaluate": "--run",
    "bench": "--run",
}


@pytest.fixture(scope="module")
def made(tokenizer, tmp_path_factory):
    """Good and bad files, an empty folder, and the folder of a run that has only been started."""
    folder = tmp_path_factory.mktemp("desk")
    good = '{"question": "q", "answer": "1"}\n'
    (folder / "good.jsonl").write_text(good)
    (folder / "bad.jsonl").write_text(good + "{oops")
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe")
    (folder / "folder").mkdir()
    (folder / "pretrained").mkdir()
    (folder / "pretrained" / "config.json").write_text('{"model_type": "llama"}')
    model = small_model(len(tokenizer))
    config = build({"problems": 60, "eval.problems": 4, "model": vars(model.config)})
    Run(folder / "run", config, model, tokenizer, Format(), [], [], []).create()
    return folder


@pytest.fixture
def desk(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def call(command: str, arguments: list[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    if command.endswith(".py"):
        return {"train.py": train, "sample.py": sample}[command].main()
    name = f"nanotir.{command}.__main__" if command in ("lab", "bench", "page") else command
    return importlib.import_module(name if "nanotir" in name else f"nanotir.{name}").main()


def contents(folder: Path) -> dict:
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def one_line_of(command, arguments, folder, monkeypatch, capsys) -> str:
    """What a wrong invocation says, if it is wrong in the right way."""
    before = contents(folder)
    with pytest.raises(SystemExit) as stopped:
        call(command, arguments, monkeypatch)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"{command}: ")
    assert contents(folder) == before
    return err


@pytest.mark.parametrize("command, arguments", [(c, a) for c, rows in WRONG.items() for a in rows])
def test_a_wrong_invocation_is_one_line_and_leaves_nothing(
    desk, monkeypatch, capsys, command, arguments
):
    words = shlex.split(arguments)
    if command == "train.py" and "--resume" not in arguments and "--init" not in arguments:
        words = [*SMALL, *words]  # where it gets as far as the problems
    assert WRONG[command][arguments] in one_line_of(command, words, desk, monkeypatch, capsys)


def damage(run: Path, how: str):
    name, _, what = how.partition(" ")
    path = run / ("" if name == "config.json" else "checkpoint") / name
    if what == "is missing":
        path.unlink()
    elif what == "is cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif what == "is empty":
        path.write_bytes(b"")
    else:
        config = json.loads(path.read_text())
        changed = {
            "is a list": [config],
            "has no model": {"seed": 0},
            "has another model": config | {"model": config["model"] | {"d_ff": 96}},
            "has a new setting": config | {"model": config["model"] | {"heads": 3}},
        }
        path.write_text(json.dumps(changed[what]))


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_run_is_one_line_and_stays_as_it_is(
    desk, tmp_path, monkeypatch, capsys, command, how
):
    shutil.copytree(desk / "run", tmp_path / "run")
    damage(tmp_path / "run", how)
    arguments = [*READERS[command].split(), str(tmp_path / "run")]
    assert DAMAGES[how] in one_line_of(command, arguments, tmp_path, monkeypatch, capsys)


def test_over_two_hundred_wrong_invocations_are_tried():
    assert sum(map(len, WRONG.values())) + len(DAMAGES) * len(READERS) > 200


# Parser.


def test_a_value_may_be_empty_where_that_means_something():
    parser = Parser("x", "y", may_be_empty=["tools"])
    parser.add_argument("--tools")
    assert parser.parse_args(["--tools", ""]).tools == ""


def test_words_and_flags_may_be_mixed():
    parser = Parser("x", "y")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--n", type=int)
    for arguments in ("--n 3 What is 2?", "What is 2? --n 3", "What is --n 3 2?"):
        options = parser.parse_args(arguments.split())
        assert (options.words, options.n) == (["What", "is", "2?"], 3)


# How a command ends.


@pytest.mark.parametrize(
    "error, code, out, err",
    [
        (ValueError("too\nlong"), 2, "", "x: too long\n"),
        (ValueError("a\x1b[2J"), 2, "", "x: a<U+001B>[2J\n"),
        (DeadTool("it only fails"), 2, "", "x: it only fails\n"),
        (OSError(28, "No space left"), 2, "", "x: No space left\n"),
        (OSError(2, "No such file", "f"), 2, "", "x: No such file: 'f'\n"),
        (KeyboardInterrupt(), 130, "", "interrupted\n"),
        (KeyboardInterrupt("saved"), 130, "saved\n", ""),
    ],
)
def test_whatever_ends_a_command_is_one_line(capsys, error, code, out, err):
    with pytest.raises(SystemExit) as stopped, one_line("x"):
        raise error
    assert stopped.value.code == code
    assert capsys.readouterr() == (out, err)


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(KeyError), one_line("x"):
        raise KeyError("bug")


PRINTS = "from nanotir.commands import one_line\nwith one_line('x'):\n    print('x\\n' * 99999)"


def in_shell(command: str) -> subprocess.CompletedProcess:
    line = command.replace("python", shlex.quote(sys.executable), 1)
    given = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ}
    return subprocess.run(["bash", "-o", "pipefail", "-c", line], **given)


def test_a_reader_that_hangs_up_ends_a_command_in_silence():
    done = in_shell(f"python -c {shlex.quote(PRINTS)} | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (141, "x\n", "")


def test_a_closed_output_is_no_error():
    done = in_shell(f"python -c {shlex.quote(PRINTS)} >&-")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sandbox_shows_its_help():
    done = in_shell("python -m nanotir.tools.sandbox --help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "layers of protection" in done.stdout


def test_the_sandbox_does_not_load_the_parser():
    source = "import sys, nanotir.tools.sandbox; print('argparse' in sys.modules)"
    assert in_shell(f'python -c "{source}"').stdout == "False\n"
    assert commands.Parser
