"""Hugging Face folders in and out: config.json, model.safetensors and tokenizer.json.

Every tensor of a folder must have its place in the model, and every place its tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
import torch
import torch.nn as nn
from torch import Tensor

from nanotir.huggingface.layouts import (
    LAYOUTS,
    Layout,
    layout_for,
    read_config,
    tensor_names,
    write_config,
)
from nanotir.huggingface.safetensors import read_safetensors, write_safetensors
from nanotir.lora import is_adapter
from nanotir.model import ModelConfig, Transformer
from nanotir.run_files import reading, write_json
from nanotir.tokenizer import Tokenizer
from nanotir.turns import end_tokens, read_json, read_turns, template_of


def load_pretrained(folder: str | Path) -> tuple[Transformer, Tokenizer]:
    """The model of a folder, in fp32 on the CPU whatever its files hold, and its tokenizer.

    ValueError in one line for a folder that is damaged, or whose model nanotir does not have.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise ValueError(f"'{folder}' is not a Hugging Face folder: it has no config.json")
    values = read_json(folder / "config.json")
    with reading(folder / "config.json"):
        layout, config = read_config(values)
    tokenizer = read_tokenizer(folder, config.vocab_size)
    tensors = read_tensors(folder)
    with reading(folder):
        return filled(config, layout, tensors), tokenizer


def save_pretrained(model: Transformer, tokenizer: Tokenizer, folder: str | Path):
    """Write a folder that transformers and load_pretrained read, in the parameters' own dtype.

    ValueError that names the field if no layout has what the model's config asks for, or if the
    model has adapters.
    """
    name = layout_for(model.config)
    if any(map(is_adapter, model.state_dict())):
        raise ValueError("the model has adapters: policy.load_run(RUN) merges those of a run")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", pieces(model, LAYOUTS[name]))
    tokenizer.save(folder)

    ids = {"pad_token_id": tokenizer.pad_id, "eos_token_id": sorted(tokenizer.end_ids)}
    dtype = {"torch_dtype": str(model.embed.weight.dtype).removeprefix("torch.")}
    write_json(folder / "config.json", write_config(model.config, name) | dtype | ids)
    write_json(folder / "generation_config.json", ids)
    tokens = {
        "chat_template": template_of(tokenizer.turns),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": tokenizer.decode([tokenizer.pad_id]),
        "eos_token": tokenizer.decode([tokenizer.end_id]),
        "model_max_length": model.config.max_seq_len,
    }
    write_json(folder / "tokenizer_config.json", tokens)


def is_pretrained(folder: str | Path) -> bool:
    """Whether a folder is one of Hugging Face's: its config names a kind of model."""
    path = Path(folder) / "config.json"
    return bool(folder) and path.exists() and "model_type" in read_json(path)


@torch.no_grad()
def add_tags(
    model: Transformer, tokenizer: Tokenizer, tools: Iterable[str]
) -> tuple[Transformer, Tokenizer]:
    """The tokenizer with nanotir's tags, and the model with their rows, the mean of the others.

    The tags take the rows that the tokenizer leaves unused. The model gets more where they end.
    """
    tagged = tokenizer.with_tags(tools)
    known = torch.tensor(sorted(tokenizer.ids))
    new = torch.tensor(sorted(tagged.ids - tokenizer.ids))
    rows = max(model.config.vocab_size, 1 + max(tagged.ids))
    model.config.vocab_size = rows
    for layer in (model.embed, model.head):
        wider = layer.weight.new_zeros(rows, model.config.d_model)  # (V, d)
        wider[: len(layer.weight)] = layer.weight
        wider[new] = layer.weight[known].mean(0)
        layer.weight = nn.Parameter(wider)
    if model.config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model, tagged


# Weights.


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from its one file or from the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    if not index.exists():
        why = f"'{folder}' has no model.safetensors, nor an index of its shards"
        raise ValueError(f"{why}: weights in other formats are not read")
    places = read_json(index).get("weight_map")
    with reading(index):
        if not isinstance(places, dict):
            raise ValueError("it has no 'weight_map'")
        shards = sorted(set(places.values()))
        for shard in shards:
            if Path(shard).name != shard:
                raise ValueError(f"its shard '{shard:.60}' is not in its folder")
    found = {shard: read_safetensors(folder / shard) for shard in shards}
    held = {(name, shard) for shard, tensors in found.items() for name in tensors}
    with reading(index):
        for name, shard in sorted(held ^ places.items()):
            raise ValueError(f"it and '{shard:.60}' disagree about the tensor '{name:.100}'")
    return {name: found[shard][name] for name, shard in places.items()}


def filled(config: ModelConfig, layout: Layout, tensors: dict[str, Tensor]) -> Transformer:
    """A model with the weights of `tensors`. ValueError unless each has its place, and fills it."""
    if config.n_layers * max(1, config.n_experts) > len(tensors):
        raise ValueError(f"its {len(tensors)} tensors are too few for the layers of its config")
    with torch.device("meta"):  # shapes only, because all weights come from the file
        model = Transformer(config)
    tensors = {name: t for name, t in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    head = tensors.pop("lm_head.weight", None) if config.tie_embeddings else None
    check_places(tensors, pieces(model, layout))
    if head is not None and not torch.equal(head, tensors["model.embed_tokens.weight"]):
        raise ValueError("'tie_word_embeddings' is true, but it has two different matrices")

    model.to_empty(device="cpu")
    if config.tie_embeddings:
        model.head.weight = model.embed.weight
    for name, place in pieces(model, layout).items():
        place.copy_(tensors[name])
        if not place.sum().isfinite():
            raise ValueError(f"the tensor '{name}' is not finite")
    return model


def pieces(model: Transformer, layout: Layout) -> dict[str, Tensor]:
    """{name in transformers: the part of a parameter of `model` that it is}."""
    config = model.config
    found = {}
    for parameter, weight in model.named_parameters():
        names = tensor_names(parameter, layout)
        heights = [len(weight) // len(names)] * len(names)
        if "qkv" in parameter:
            heads = (config.n_heads, config.n_kv_heads, config.n_kv_heads)
            heights = [n * config.d_head for n in heads]
        found |= zip(names, weight.detach().split(heights))
    return found


def check_places(tensors: dict[str, Tensor], places: dict[str, Tensor]):
    for name in sorted(places.keys() - tensors.keys()):
        raise ValueError(f"it has no tensor '{name:.100}'")
    for name in sorted(tensors.keys() - places.keys()):
        raise ValueError(f"its model has no place for the tensor '{name:.100}'")
    for name, place in places.items():
        if tensors[name].shape != place.shape:
            shapes = f"{list(tensors[name].shape)}, not {list(place.shape)}"
            raise ValueError(f"the shape of the tensor '{name}' is {shapes}")


# Tokenizers.


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder, with the turns and the end tokens of its model."""
    path = folder / "tokenizer.json"
    with reading(path):
        trusted = _from_file(path)
        check_tokenizer(trusted, vocab_size)
        # A file may ask for rows of one length, whatever the text.
        trusted.no_truncation()
        trusted.no_padding()
    with reading(folder):
        return Tokenizer(trusted, read_turns(folder), end_tokens(folder, trusted.get_vocab()))


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of its Rust code is no Exception
        raise ValueError(error) from None


def check_tokenizer(tokenizer: tokenizers.Tokenizer, vocab_size: int):
    """ValueError unless every byte has an id, and a model of vocab_size knows all of the ids."""
    vocabulary = tokenizer.get_vocab()
    if max(vocabulary.values(), default=0) >= vocab_size:
        raise ValueError(f"it has ids beyond those of its model, {vocab_size}")
    state = json.loads(tokenizer.to_str())
    if state["model"].get("dropout"):
        raise ValueError("its 'dropout' spells the same text in other ids each time")
    steps = [json.dumps(state[part]) for part in ("pre_tokenizer", "decoder")]
    byte_level = all('"ByteLevel"' in step for step in steps)
    has_bytes = all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    if not byte_level and not (state["model"].get("byte_fallback") and has_bytes):
        raise ValueError("it has no ids for single bytes, so it loses characters that it lacks")
