"""The settings of a run: the dataclasses of all files put together, and the command line.

Every field is a flag: `--seed 1`, `--rl.group-size 4`. Its type and default are the field's. Its
help is the comment beside the field, and on the lines below it.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from nanotir.checks import Count, Range, Seed, Whole, check_settings, hints_of, one_of, range_of
from nanotir.commands import Parser, dashed, one_line
from nanotir.demonstrate import TeacherConfig
from nanotir.evaluate import EvalConfig, check_samples
from nanotir.huggingface import is_pretrained
from nanotir.lora import WEIGHTS
from nanotir.model import ModelConfig
from nanotir.problems.sources import Level, check_source, is_generated
from nanotir.recipes import autocode, cir, grpo, tapo, tora
from nanotir.rewards import RewardConfig
from nanotir.rl import RLConfig
from nanotir.room import TOO_LONG
from nanotir.run_files import read_config, reading
from nanotir.sampler import SamplerConfig
from nanotir.sft import SFTConfig
from nanotir.tools.python import PythonConfig
from nanotir.tools.search import SearchConfig

Threads = Annotated[int, Range(1, 1024)]


@dataclass
class RunConfig:
    recipe: str = "tapo"  # a published system: grpo, tora, cir, autocode or tapo
    preset: str = "tiny"  # tiny (minutes on a CPU), tiny-moe, probe (seconds, learns next to
    # nothing), small (15M parameters), gpu (107M), smollm2 (for a pretrained --init: its default)
    out: str = ""  # run folder; by default runs/RECIPE-PRESET-NUMBER
    seed: Seed = 0  # every random draw of the run derives from it
    data: str = "generated"  # training problems: generated, generated:lin,mul, plain (generated,
    # in one phrasing for each family), gsm8k:PATH, math:PATH, svamp:PATH or jsonl:PATH
    eval_data: str = ""  # held-out problems, likewise; by default the test split of generated ones.
    # Of several, as generated,generated@2,svamp:PATH, each is reported apart at the end
    too_long: str = "error"  # what to do with a problem that fills a whole row: error, or skip it
    problems: Count = 32000  # training problems, each demonstrated once; a file may hold fewer
    level: Level = 1  # ceiling of generated problems: numbers of up to level + 4 digits
    tools: str = "python,search"  # what the model may call
    format: str = "tags"  # how calls are written: tags, fences, text (fences in plain text), or
    # grammar (tags for thoughts and the answer as well)
    init: str = ""  # start from this run's weights and tokenizer instead of random ones, or from
    # those of a pretrained model, a Hugging Face folder
    lora: Whole = 0  # rank of adapters on the frozen weights of --init; 0: train all weights
    weights: str = "fp32"  # or bf16: half the memory, for the frozen weights under --lora; weights
    # that are trained in bf16 lose updates smaller than 1/500 of them
    gradient_checkpointing: bool = False  # keep one activation a block, and compute the rest twice
    answers: str = ""  # run on the functions in this folder of answers to the exercises
    resume: str = ""  # go on with this run folder, by its own settings; device, threads may differ
    save_every: Count = 25  # steps between checkpoints
    device: str = "cpu"  # cpu, cuda or mps
    threads: Threads = 2  # micro-batches that are computed at a time on a CPU, and processes that
    # sample, this one included; 1 on a GPU or with torchrun
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    python: PythonConfig = field(default_factory=PythonConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    tora: tora.ToRAConfig = field(default_factory=tora.ToRAConfig)
    autocode: autocode.AutoCodeConfig = field(default_factory=autocode.AutoCodeConfig)

    def __post_init__(self):
        check_settings(self)
        one_of("recipe", self.recipe, RECIPES)
        one_of("too_long", self.too_long, TOO_LONG)
        one_of("precision of --weights", self.weights, WEIGHTS)
        if self.lora and not self.init:
            raise ValueError("--lora adapts the weights of another run or model: name it by --init")
        check_source(self.data)
        if not self.eval_data and not is_generated(self.data):
            mend = "needs held-out problems as well: name them by --eval-data"
            raise ValueError(f"--data {self.data} {mend}")
        self.eval_data = self.eval_data or self.data
        if self.rl.observations == "learned" and not self.sampler.forge:
            why = "the model must be able to write what it learns"
            raise ValueError(f"--rl.observations learned needs --sampler.forge true: {why}")
        if self.rl.keep and self.reward.coin:
            raise ValueError("rl.keep needs graded answers: it does not go with reward.coin")
        check_text(self)
        autocode.check(self)
        check_samples(self.eval, self.sampler)
        narrowed = self.sampler.top_p < 1 or self.sampler.top_k or not self.sampler.temperature
        if self.rl.steps and narrowed:
            whole = "sampler.temperature > 0, sampler.top_p 1 and sampler.top_k 0"
            raise ValueError(f"RL needs {whole}: it must know the probability of what was sampled")


def check_text(config: RunConfig):
    """ValueError for settings that only some formats go with."""
    needs_tags = {  # by flag: whether it is set, and the formats without its tags
        "--recipe autocode": (config.recipe == "autocode", ("text", "fences")),
        "--reward.grammar": (config.reward.grammar > 0, ("text",)),
    }
    for flag, (is_set, without) in needs_tags.items():
        if is_set and config.format in without:
            raise ValueError(f"{flag} needs tags, which --format {config.format} does not write")
    if config.sampler.stop_string and config.format != "text":
        raise ValueError("--sampler.stop-string needs --format text: tags are matched exactly")


RECIPES = {"grpo": grpo, "tora": tora, "cir": cir, "autocode": autocode, "tapo": tapo}
PRESETS = {
    "tiny": {},  # the defaults
    # Two of eight experts for a token: the active parameters of tiny, three times as many in all.
    "tiny-moe": {"model.n_experts": 8},
    "probe": {
        "model.n_layers": 2,
        "model.d_model": 64,
        "model.d_ff": 128,
        "problems": 200,
        "sft.steps": 10,
        "sft.batch_size": 16,
        "rl.steps": 2,
        "rl.problems": 4,
        "rl.group_size": 4,
        "sampler.max_new_tokens": 48,
        "eval.problems": 10,
    },
    "small": {
        "model.vocab_size": 4096,
        "model.n_layers": 6,
        "model.d_model": 384,
        "model.n_heads": 6,
        "model.n_kv_heads": 2,
        "model.d_ff": 1536,
        "model.max_seq_len": 1024,
        "model.rope_theta": 10000.0,
        "teacher.quality": 1.0,
        "sft.steps": 250,
        "sft.batch_size": 32,
        "sft.micro_batch_tokens": 1024,
        "sft.adam_lr": 3e-3,
        "sft.bf16": True,
        "sampler.max_new_tokens": 320,
        "sampler.max_calls": 8,
        "reward.max_completion_len": 320,
        "reward.soft_punish_cache": 160,
        "rl.steps": 10,
        "rl.problems": 8,
        "rl.updates": 1,
        "rl.lr": 1e-4,
        "eval.problems": 200,
    },
    "gpu": {
        "model.vocab_size": 4096,
        "model.n_layers": 12,
        "model.d_model": 768,
        "model.n_heads": 12,
        "model.n_kv_heads": 4,
        "model.d_ff": 3072,
        "model.max_seq_len": 1024,
        "model.rope_theta": 10000.0,
        "device": "cuda",
        "save_every": 100,
        "teacher.quality": 1.0,
        "sft.steps": 2000,
        "sft.batch_size": 128,
        "sft.micro_batch_tokens": 32768,
        "sft.lr": 5e-3,
        "sft.adam_lr": 1e-3,
        "sft.bf16": True,
        "sampler.max_new_tokens": 320,
        "sampler.max_calls": 8,
        "sampler.max_rows": 512,
        "sampler.bf16": True,
        "python.timeout": 5.0,
        "reward.max_completion_len": 320,
        "reward.soft_punish_cache": 160,
        "rl.steps": 200,
        "rl.lr": 1e-5,
        "rl.bf16": True,
        "rl.micro_batch_tokens": 32768,
        "rl.importance_cap": 2.0,
        "eval.problems": 500,
    },
    # A pretrained model of 135M parameters on GSM8K, in ten minutes of one GPU.
    "smollm2": {
        "device": "cuda",
        "save_every": 100,
        "teacher.quality": 1.0,
        "sft.steps": 467,  # two epochs
        "sft.batch_size": 32,
        "sft.micro_batch_tokens": 16384,
        "sft.muon": False,
        "sft.adam_lr": 5e-4,
        "sft.bf16": True,
        "sampler.max_new_tokens": 256,
        "sampler.max_calls": 8,
        "sampler.max_rows": 512,
        "sampler.bf16": True,
        "python.timeout": 5.0,
        "reward.max_completion_len": 256,
        "reward.soft_punish_cache": 64,
        "rl.steps": 30,
        "rl.problems": 64,
        "rl.refills": 0,
        "rl.lr": 2e-5,
        "rl.bf16": True,
        "rl.micro_batch_tokens": 16384,
        "rl.importance_cap": 2.0,
        "eval.problems": 1319,
    },
}

PATHS = {"out", "init", "answers", "resume", "eval_data", "search.path"}


def parse(arguments=None) -> RunConfig:
    """The RunConfig of a command line: defaults, then the recipe's, the preset's, the flags.

    With --resume, that of the run. Prints one line and exits with 2 on a mistake.
    """
    parser = Parser("train.py", "Train a model that reasons with tools.", ("tools", "rl.budgets"))
    for name, (kind, default, comment) in flags().items():
        parser.add_argument(
            dashed(f"--{name}"),
            dest=name,
            type=boolean if kind is bool else kind,
            default=argparse.SUPPRESS,
            metavar=kind.__name__.upper(),
            help=f"{comment} (default: {default!r})".replace("%", "%%"),
        )
    given = vars(parser.parse_args(arguments))
    with one_line("train.py"):
        check_given(given)
        if folder := given.get("resume"):
            settings = read_config(folder)
            with reading(f"{folder}/config.json"):
                return build(settings | given | {"out": folder})
        init = given.get("init", "")
        if is_pretrained(init) or init and (Path(init) / "checkpoint" / "turns.json").exists():
            given.setdefault("preset", "smollm2")
        own = getattr(RECIPES.get(given.get("recipe", "tapo")), "SETTINGS", {})
        absent = {name: 0 for name in ("sft.steps", "rl.steps") if own.get(name) == 0}  # ToRA's RL
        return build({**own, **PRESETS[given.get("preset", "tiny")], **absent, **given})


def check_given(given: dict):
    """ValueError for flags that do not go together."""
    one_of("preset", given.get("preset", "tiny"), PRESETS)
    if given.get("preset") == "smollm2" and "init" not in given:
        raise ValueError("--preset smollm2 is for a pretrained model: name its folder by --init")
    for name in PATHS & given.keys():
        check_path(dashed(f"--{name}"), given[name])
    others = given.keys() - {"resume", "device", "threads"}
    if "resume" in given and others:
        flag = dashed(f"--{min(others)}")
        raise ValueError(f"--resume goes on with the run's own settings: leave out {flag}")
    shape = [name for name in given if name.startswith("model.")]
    if "init" in given and shape:
        raise ValueError(f"--init brings its own model: leave out {dashed(f'--{shape[0]}')}")


def check_path(flag: str, path: str):
    """ValueError for a path that the shell has not filled in: "" or ~/x."""
    if not path.strip():
        raise ValueError(f"{flag} is empty: is a variable not set?")
    if os.path.expanduser(path) != path:
        mend = f"write {flag} {path}, or the whole path"
        raise ValueError(f"{flag}={path}: no shell fills in a ~ after an '=': {mend}")


def flags(cls=RunConfig, prefix: str = "") -> dict[str, tuple]:
    """{flag: (type, default, comment and range)} of a settings class and of those inside it."""
    found = {}
    comments = comments_of(cls)
    for item in dataclasses.fields(cls):
        section = item.default_factory
        if dataclasses.is_dataclass(section):
            found |= flags(section, f"{item.name}.")
        else:
            allowed = range_of(hints_of(cls)[item.name])
            comment = comments[item.name] + (f" [{allowed}]" if allowed else "")
            found[prefix + item.name] = (type(item.default), item.default, comment)
    return found


def comments_of(cls) -> dict[str, str]:
    """{field: the comment beside it and on the lines below it} from a class's source."""
    found = {}
    name = None
    for line in inspect.getsource(cls).splitlines():
        if beside := re.match(r"    (\w+): .*?  # (.+)", line):
            name = beside[1]
            found[name] = beside[2]
        elif name and (below := re.match(r"    # (.+)", line)):
            found[name] += " " + below[1]
        else:
            name = None
    return found


def build(values: dict, cls=RunConfig) -> RunConfig:
    """A RunConfig from {"rl.steps": 100, ...} or a nested dict. ValueError for an unknown key."""
    nested: dict = {}
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        target = nested.setdefault(section, {}) if section else nested
        target[key] = value
    kinds = {item.name: item.default_factory for item in dataclasses.fields(cls)}
    for name, value in nested.items():
        one_of("setting", name, kinds)
        if isinstance(value, dict) and dataclasses.is_dataclass(kinds[name]):
            nested[name] = build(value, kinds[name])
    return cls(**nested)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() in ("true", "1", "yes")
