"""Hugging Face folders: transformers' logits, and one clear line for whatever is damaged."""

import json
import os
import shutil
import time
import tracemalloc

import pytest
import torch
from conftest import small_model
from hf_folders import (
    CHUNK,
    LAYOUTS,
    NEW,
    OLD,
    PROMPTS,
    REFERENCES,
    V,
    byte_tokenizer,
    packed,
    reference,
    shown,
    weights_of,
    with_header,
    write_folder,
)

from nanotir.cache import KVCache
from nanotir.huggingface import load_pretrained, save_pretrained
from nanotir.huggingface.safetensors import read_safetensors
from nanotir.lora import adapt
from nanotir.model import Transformer

REFERENCE = json.loads(REFERENCES.read_text())


def assert_close(a, b):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=1e-4, rtol=0)


def padded(rows, starts) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths as ids and positions, each (B, T)."""
    T = max(map(len, rows))
    ids = [row + [0] * (T - len(row)) for row in rows]
    positions = [
        [*range(start, start + len(row))] + [-1] * (T - len(row))
        for row, start in zip(rows, starts)
    ]
    return torch.tensor(ids), torch.tensor(positions)


# transformers' logits.


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dialect", [NEW, OLD], ids=["v5", "v4"])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_ragged_rows_through_the_cache_have_the_logits_and_ids_of_transformers(
    layout, dialect, shards, tmp_path
):
    model, _ = load_pretrained(write_folder(tmp_path, layout, dialect, shards))
    cache = KVCache(model.config, len(PROMPTS), 40)
    lengths = [len(prompt) for prompt in PROMPTS]
    prefilled = model(*padded(PROMPTS, [0] * 3), cache=cache)
    logits = torch.stack([row[n - 1] for row, n in zip(prefilled, lengths)])
    expected = REFERENCE[layout]
    assert_close([shown(row) for row in logits], [row["last"] for row in expected])

    greedy = []
    for _ in range(6):
        greedy.append(logits.argmax(-1))
        logits = model(greedy[-1][:, None], cache=cache)[:, 0]
    assert torch.stack(greedy, 1).tolist() == [row["greedy"] for row in expected]

    # Only two of the rows go on: one in one piece, the other in two.
    first = [CHUNK, [], CHUNK[:2]]
    model(*padded(first, cache.lengths.tolist()), cache=cache)
    model(*padded([[], [], CHUNK[2:4]], cache.lengths.tolist()), cache=cache)
    assert cache.lengths.tolist() == [lengths[0] + 11, lengths[1] + 6, lengths[2] + 10]
    last = model(*padded([[], CHUNK, CHUNK[4:]], cache.lengths.tolist()), cache=cache)
    assert_close(shown(last[1, 4]), expected[1]["after"])
    assert_close(shown(last[2, 0]), expected[2]["after"])


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_whole_rows_have_the_logits_of_transformers(layout, tmp_path):
    model, _ = load_pretrained(write_folder(tmp_path, layout))
    for prompt, row in zip(PROMPTS, REFERENCE[layout]):
        logits = model(torch.tensor([prompt + row["greedy"] + CHUNK]))[0]
        assert logits[len(prompt) - 1 :].argmax(-1)[:6].tolist() == row["greedy"]
        assert_close(shown(logits[-1]), row["after"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_still_gives_the_references(layout, tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    for row, expected in zip(reference(write_folder(tmp_path, layout)), REFERENCE[layout]):
        assert row["greedy"] == expected["greedy"]
        assert_close(row["last"], expected["last"])
        assert_close(row["after"], expected["after"])


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_what_transformers_saves_and_what_it_loads_have_equal_logits(layout, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.AutoConfig.from_pretrained(write_folder(tmp_path / "made", layout))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for weight in theirs.parameters():
        weight.normal_(float(weight.dim() == 1), 0.3)
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="20kB")
    byte_tokenizer().save(str(tmp_path / "saved" / "tokenizer.json"))
    ours, _ = load_pretrained(tmp_path / "saved")
    save_pretrained(ours, tokenizer, tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")

    ids = torch.randint(V, (3, 100), generator=torch.Generator().manual_seed(0))
    expected = theirs(ids).logits
    assert expected.std() > 1
    assert_close(ours(ids), expected)
    assert torch.equal(back(ids).logits, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_spells_as_the_tokenizer_that_is_saved(layout, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    save_pretrained(load_pretrained(write_folder(tmp_path, layout))[0], tokenizer, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "What is 12345 + 678?  <python>print(12)</python>\n\n ünï<|end|>"
    assert theirs.encode(text) == tokenizer.encode(text)
    assert (theirs.pad_token_id, theirs.eos_token_id) == (tokenizer.pad_id, tokenizer.end_id)


# Folders in and out.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_is_saved_has_the_weights_it_was_loaded_from(layout, tmp_path, tokenizer):
    model, _ = load_pretrained(write_folder(tmp_path, layout, shards=2))
    save_pretrained(model, tokenizer, tmp_path / "out")
    saved, loaded = read_safetensors(tmp_path / "out" / "model.safetensors"), weights_of(layout)
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name].float()) for name in loaded)


def test_a_model_in_bfloat16_is_saved_in_bfloat16(tmp_path, tokenizer):
    model, _ = load_pretrained(write_folder(tmp_path, "llama"))
    save_pretrained(model.bfloat16(), tokenizer, tmp_path / "out")
    assert read_config_of(tmp_path / "out")["torch_dtype"] == "bfloat16"
    saved = read_safetensors(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in weights_of("llama").items())


def read_config_of(folder) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_loaded_parameters_are_trained_in_fp32_and_tied_ones_are_one(tmp_path):
    tied, _ = load_pretrained(write_folder(tmp_path / "tied", "llama"))
    untied, _ = load_pretrained(write_folder(tmp_path / "untied", "qwen2"))
    assert tied.head.weight is tied.embed.weight
    assert untied.head.weight is not untied.embed.weight
    for model in (tied, untied):
        model(torch.tensor([[1, 2, 3]])).square().mean().backward()
        assert all(p.grad is not None and p.dtype == torch.float32 for p in model.parameters())


def test_no_random_weights_are_drawn_for_a_model_that_is_loaded(tmp_path, monkeypatch):
    folder = write_folder(tmp_path, "mixtral")
    state = torch.get_rng_state()
    model, _ = load_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(Transformer, "reset_parameters", None)  # an error, if it is called
    again, _ = load_pretrained(folder)
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_buffers_and_a_copy_of_a_tied_head_are_left_out(tmp_path):
    plain, _ = load_pretrained(write_folder(tmp_path, "llama"))
    tensors = weights_of("llama")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    (tmp_path / "model.safetensors").write_bytes(packed(tensors))
    model, _ = load_pretrained(tmp_path)
    for name, weight in plain.named_parameters():
        assert torch.equal(model.get_parameter(name), weight)


def test_a_model_with_adapters_is_not_half_saved(tmp_path, tokenizer):
    model, _ = load_pretrained(write_folder(tmp_path / "made", "llama"))
    adapt(model, 2)
    with pytest.raises(ValueError, match="load_run"):
        save_pretrained(model, tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_model_that_no_layout_has_is_not_half_saved(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="token_shifts"):
        save_pretrained(small_model(20, token_shifts=1), tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Damaged folders: each change is made to a good folder of one shard, or of two.


def change_config(**values):
    def change(folder):
        (folder / "config.json").write_text(json.dumps(read_config_of(folder) | values))

    return change


def change_tensors(change_them, layout="llama"):
    def change(folder):
        tensors = weights_of(layout)
        change_them(tensors)
        (folder / "model.safetensors").write_bytes(packed(tensors))

    return change


def change_index(change_it):
    def change(folder):
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        change_it(index["weight_map"])
        path.write_text(json.dumps(index))

    return change


def write(name, data):
    def change(folder):
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def change_tokenizer(change_it):
    def change(folder):
        path = folder / "tokenizer.json"
        state = json.loads(path.read_text())
        change_it(state)
        path.write_text(json.dumps(state))

    return change


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def drop(name):
    return lambda folder: (folder / name).unlink()


Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
DEEP = "[" * 100_000
MERGED = {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}
ONE_FILE = {
    "no folder": (shutil.rmtree, "config.json"),
    "no config": (drop("config.json"), "config.json"),
    "a config that is not JSON": (write("config.json", "{"), "config.json"),
    "a config that is not text": (write("config.json", b"\xff\xfe\xfd"), "config.json"),
    "a config that is a list": (write("config.json", "[]"), "config.json.*is not a JSON object"),
    "a deep config": (write("config.json", DEEP), "config.json.*is not JSON"),
    "a long number": (
        write("config.json", '{"a": 1%s}' % ("0" * 10**6)),
        "config.json.*is not JSON",
    ),
    "a config of another model": (change_config(model_type="opt"), "config.json.*model_type"),
    "a config of another layout": (change_config(model_type="qwen2"), "no tensor.*k_proj.bias"),
    "too many layers": (change_config(num_hidden_layers=10**9), "too few for the layers"),
    "one layer too many": (change_config(num_hidden_layers=3), "no tensor 'model.layers.2"),
    "one layer too few": (change_config(num_hidden_layers=1), "no place.*'model.layers.1"),
    "a wide model": (change_config(hidden_size=2**24), "shape of the tensor"),
    "too wide a model": (change_config(hidden_size=10**12, num_attention_heads=1), "cannot be"),
    "many ids": (change_config(vocab_size=10**9), "embed_tokens.weight' is"),
    "an untied head": (change_config(tie_word_embeddings=False), "no tensor 'lm_head.weight'"),
    "a head of its own": (
        change_tensors(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "tie_word_embeddings",
    ),
    "no weights": (drop("model.safetensors"), "no model.safetensors.*other formats are not read"),
    "weights cut off": (cut("model.safetensors", 9000), "model.safetensors.*need"),
    "a header beyond the file": (
        write("model.safetensors", b"\xff\xff\xff" + bytes(5)),
        "model.safetensors.*truncated",
    ),
    "tensors that overlap": (
        write("model.safetensors", with_header(json.dumps({"a": MERGED, "b": MERGED}), bytes(64))),
        "model.safetensors.*overlap",
    ),
    "a deep header": (write("model.safetensors", with_header(DEEP)), "safetensors.*RecursionError"),
    "a tensor missing": (change_tensors(lambda t: t.pop(Q)), f"no tensor '{Q}'"),
    "a tensor too many": (
        change_tensors(lambda t: t.update(extra=t[NORM])),
        "no place for the tensor 'extra'",
    ),
    "a bias": (
        change_tensors(lambda t: t.update({Q.replace("weight", "bias"): t[NORM]})),
        "no place for the tensor.*q_proj.bias",
    ),
    "a turned tensor": (
        change_tensors(lambda t: t.update({"model.layers.0.mlp.up_proj.weight": t[Q]})),
        r"up_proj.weight' is \[32, 32\], not \[40, 32\]",
    ),
    "a tensor of one dimension": (
        change_tensors(lambda t: t.update({Q: t[Q].flatten()})),
        "q_proj.weight' is",
    ),
    "nan": (change_tensors(lambda t: t[Q][3, 4].fill_(float("nan"))), f"'{Q}' is not finite"),
    "infinity": (change_tensors(lambda t: t[NORM][3].fill_(float("inf"))), "not finite"),
    "no tokenizer": (drop("tokenizer.json"), "tokenizer.json"),
    "a tokenizer that is not JSON": (write("tokenizer.json", "{"), "tokenizer.json"),
    "an empty tokenizer": (write("tokenizer.json", "{}"), "tokenizer.json"),
    "a deep tokenizer": (write("tokenizer.json", DEEP), "tokenizer.json"),
    "a tokenizer without bytes": (
        change_tokenizer(lambda state: state.update(pre_tokenizer={"type": "Whitespace"})),
        "tokenizer.json.*single bytes",
    ),
    "a tokenizer that decodes no bytes": (
        change_tokenizer(lambda state: state.update(decoder=None)),
        "tokenizer.json.*single bytes",
    ),
    "a fallback to bytes that are not there": (
        change_tokenizer(
            lambda state: (
                state.update(pre_tokenizer=None),
                state["model"].update(byte_fallback=True),
            )
        ),
        "tokenizer.json.*single bytes",
    ),
    "a tokenizer that panics": (
        change_tokenizer(
            lambda state: state["model"].update(continuing_subword_prefix="##", merges=[["A", "B"]])
        ),
        "tokenizer.json",
    ),
    "a tokenizer that tosses coins": (
        change_tokenizer(lambda state: state["model"].update(dropout=0.1)),
        "tokenizer.json.*dropout",
    ),
    "an id beyond the model": (
        change_tokenizer(lambda state: state["model"]["vocab"].update(word=V)),
        "tokenizer.json.*beyond",
    ),
}
SHARDS = {
    "a shard missing": (drop("model-2.safetensors"), "model-2.safetensors.*no such file"),
    "a shard cut off": (cut("model-2.safetensors", 5000), "model-2.safetensors.*need"),
    "an index that is not JSON": (write("model.safetensors.index.json", "{"), "index.json"),
    "a deep index": (write("model.safetensors.index.json", DEEP), "index.json.*is not JSON"),
    "an index of nothing": (write("model.safetensors.index.json", "{}"), "index.*weight_map"),
    "an index of lists": (change_index(lambda m: m.update({Q: []})), "index.json"),
    "an index that names what is not there": (
        change_index(lambda m: m.update({"extra": "model-1.safetensors"})),
        "index.json.*'extra'",
    ),
    "an index that does not name what is there": (change_index(lambda m: m.pop(Q)), f"index.*{Q}"),
    "a tensor in another shard": (
        change_index(lambda m: m.update({Q: f"model-{3 - int(m[Q][6])}.safetensors"})),
        f"index.*disagree about the tensor '{Q}'",
    ),
    "a shard above the folder": (
        change_index(lambda m: m.update({Q: "../model-1.safetensors"})),
        "index.*not in its folder",
    ),
    "a shard anywhere": (change_index(lambda m: m.update({Q: "/etc/passwd"})), "not in its folder"),
    "the folder as a shard": (change_index(lambda m: m.update({Q: ".."})), "index|no such file"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for shards in (1, 2):
        load_pretrained(write_folder(folder / str(shards), "llama", shards=shards))
    return folder


@pytest.mark.parametrize("what", [*ONE_FILE, *SHARDS])
def test_a_damaged_folder_is_one_line_and_costs_little(what, good, tmp_path):
    change, message = ONE_FILE.get(what) or SHARDS[what]
    folder = shutil.copytree(good / ("1" if what in ONE_FILE else "2"), tmp_path / "folder")
    change(folder)
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert str(folder) in str(error.value)
    assert time.process_time() - start < 2 and peak < 50e6


# A real model.


@torch.no_grad()
def test_smollm2_has_the_logits_and_ids_of_transformers(request):
    folder = request.config.getoption("--smollm2")
    if not folder:
        pytest.skip("a real model is not in this repository: give its folder with --smollm2")
    model, _ = load_pretrained(folder)
    for row in torch.load(f"{folder}/reference.pt"):
        cache = KVCache(model.config, 1, len(row["ids"]) + 40)
        logits = model(row["ids"][None], cache=cache)[0, -1]
        assert (logits - row["last_logits"]).abs().max() < 2e-3
        for id in row["greedy"].tolist():  # which were not to end
            logits[2] = -torch.inf
            assert logits.argmax() == id
            logits = model(torch.tensor([[id]]), cache=cache)[0, -1]
