"""What a run trains and uses: its tokenizer, its model and its tools, made anew or loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from nanotir.checks import one_of
from nanotir.demonstrate import corpus
from nanotir.huggingface import add_tags, is_pretrained, load_pretrained
from nanotir.lora import WEIGHTS, adapt
from nanotir.model import ModelConfig, Transformer
from nanotir.problems import Problem
from nanotir.problems.sources import is_generated
from nanotir.processes import count, own_device
from nanotir.run_files import (
    check_types,
    load_state,
    load_tokenizer,
    read_best,
    read_config,
    read_model_config,
    reading,
)
from nanotir.sampler import SamplerConfig
from nanotir.threads import use_threads
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS, Tool
from nanotir.trajectory import Format

# What it takes to use a run, as its config has it.
USED = {"sampler": dict, "tools": str, "format": str, "threads": int, "seed": int}


def use_device(name: str, threads: int = 1) -> torch.device:
    """The device, made ready. ValueError if it is not here."""
    here = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    one_of("device", name, here)
    if not here[name]:
        raise ValueError(f"there is no device {name} here: add --device cpu")
    use_threads(threads if name == "cpu" and count() == 1 else 1)
    # cuDNN plans its attention anew for every shape of a batch, which takes up to half a second.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return own_device(name)


def open_tools(config: dict) -> list[Tool]:
    """The tools that a run's config (as a dict) names, in its order, each with its settings."""
    names = tool_names(config)
    for name in names:
        one_of("tool", name, TOOLS)
    return [TOOLS[name](**config.get(name, {})) for name in names]


def tool_names(config: dict) -> list[str]:
    names = [name.strip() for name in config["tools"].split(",") if name.strip()]
    return [*dict.fromkeys(names)]


def make_policy(
    config, problems: list[Problem], tools: list[Tool]
) -> tuple[Transformer, Tokenizer]:
    """What is trained: new, or of the run or the Hugging Face folder that it starts from.

    A pretrained model gets nanotir's tags as new ids, unless calls are written as text. A resumed
    run needs that folder for what its adapters are added to.
    """
    from_init = config.init and (config.lora or not config.resume)
    if not config.resume and is_pretrained(config.init):
        model, tokenizer = load_pretrained(config.init)
        if tokenizer.end_id < 0:
            raise ValueError(f"'{config.init}' names no token that ends an answer: no eos_token")
        if config.format != "text":
            model, tokenizer = add_tags(model, tokenizer, TOOLS)
    else:
        tokenizer, shape = make_tokenizer(config, problems, tools)
        model = load_model(config.init) if from_init else Transformer(shape, config.seed)
    model.to(WEIGHTS[config.weights])
    model.checkpointing = config.gradient_checkpointing
    if config.lora:
        adapt(model, config.lora, config.seed)
    return model, tokenizer


def make_tokenizer(
    config, problems: list[Problem], tools: list[Tool]
) -> tuple[Tokenizer, ModelConfig]:
    """A tokenizer that spells the problems well, and the config of a model that fits it.

    A run that goes on with another, or starts from it, has those of that run.
    """
    if folder := config.resume or config.init:
        return load_tokenizer(folder), read_model_config(folder)
    documents = []
    if is_generated(config.data) or config.search.path:  # about what is searched, too
        for tool in tools:
            documents += getattr(tool, "documents", [])
    texts = corpus(problems, documents)
    tokenizer = Tokenizer.train(texts, config.model.vocab_size, tools=TOOLS)
    return tokenizer, replace(config.model, vocab_size=len(tokenizer))


def load_model(folder, device="cpu", part: str = "checkpoint") -> Transformer:
    """The model of a run folder, in the precision that it was trained in, or a pretrained one.

    Adapters are merged into the weights that they began from, which another folder holds.
    """
    if is_pretrained(folder):
        return load_pretrained(folder)[0].to(device)
    config = read_config(folder)
    if config.get("lora"):
        model = load_model(config["init"], device)
    else:
        model = Transformer(read_model_config(folder)).to(device)
    with reading(Path(folder) / "config.json"):
        model.to(WEIGHTS[config.get("weights", "fp32")])
    load_state(Path(folder) / part, model)
    return model


def load_run(folder, device: str = "cpu", best: bool = False, **used):
    """What it takes to use a trained model: (config as a dict, model, tokenizer, format, tools).

    With the last weights, or the best. `used` are more keys of the config that the caller reads,
    and their types. ValueError if the run has a tool that is defined elsewhere.
    """
    config = read_config(folder)
    if best:
        read_best(folder)
    part = "best" if best else "checkpoint"
    tokenizer = load_tokenizer(folder, part)
    model = load_model(folder, device, part).eval()
    with reading(Path(folder) / "config.json"):
        check_types(config, USED | used)
        format = Format(config["format"])
        SamplerConfig(**config["sampler"])
    check_known(folder, config)
    with reading(Path(folder) / "config.json"):
        tools = open_tools(config)
    return config, model, tokenizer, format, tools


def check_known(folder, config: dict):
    """ValueError for a tool of the run that a script of the user's own puts into TOOLS."""
    if foreign := [name for name in tool_names(config) if name not in TOOLS]:
        fault = f"'{folder}' calls the tool '{foreign[0]}', which is not in nanotir/tools"
        ask = 'python -c "import SCRIPT, sample; sample.main()" QUESTION'
        raise ValueError(f"{fault}: import the script that defines it, as in {ask}")
