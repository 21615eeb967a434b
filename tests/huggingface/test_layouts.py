"""config.json of transformers: what is read, what is refused by name, and what is written."""

import pytest
import torch
from conftest import small_model
from hf_folders import LAYOUTS, LLAMA3, NEW, OLD, config_of, shapes_of

from nanotir.huggingface.layouts import LAYOUTS as KNOWN
from nanotir.huggingface.layouts import layout_for, read_config, tensor_names, write_config
from nanotir.model import ModelConfig, Transformer
from nanotir.rope import stretched


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_versions_of_a_config_are_the_same_model(layout):
    assert read_config(config_of(layout, NEW)) == read_config(config_of(layout, OLD))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dropped", ["rope_parameters", "rope_theta"])
def test_a_config_that_is_written_is_read_by_either_version(layout, dropped):
    config = read_config(config_of(layout))[1]
    written = write_config(config, layout)
    del written[dropped]
    if dropped == "rope_theta":
        del written["rope_scaling"]
    assert read_config(written)[1] == config and layout_for(config) == layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_of_a_layout_has_one_place(layout):
    model = Transformer(read_config(config_of(layout))[1])
    names = [tensor_names(name, KNOWN[layout]) for name, _ in model.named_parameters()]
    assert sorted(sum(names, [])) == sorted(shapes_of(layout))


def test_llama3_stretches_long_wavelengths_and_keeps_short_ones():
    sizes = {"rope_low_freq": 1.0, "rope_high_freq": 4.0, "rope_original_len": 64}
    config = ModelConfig(rope_factor=8.0, **sizes)
    turns = torch.tensor([16.0, 4.0, 2.5, 1.0, 0.1])  # in 64 ids
    frequencies = turns * 2 * torch.pi / 64
    expected = torch.tensor([1, 1, (1 + 1 / 8) / 2, 1 / 8, 1 / 8])
    torch.testing.assert_close(stretched(frequencies, config) / frequencies, expected)


REFUSED = {  # the words of the message, the layout, and what its config says
    "model_type.*gemma3.*llama": ("llama", {"model_type": "gemma3"}),
    "model_type.*qwen3_5": ("qwen3", {"model_type": "qwen3_5"}),
    "model_type.*\\[": ("llama", {"model_type": ["llama"]}),
    "model_type.*None": ("llama", {"model_type": None}),
    "hidden_act.*gelu": ("llama", {"hidden_act": "gelu"}),
    "attention_bias.*True": ("llama", {"attention_bias": True}),
    "attention_bias.*only False": ("qwen3", {"attention_bias": True}),
    "mlp_bias": ("llama", {"mlp_bias": True}),
    "use_sliding_window": ("qwen2", {"use_sliding_window": True}),
    "'sliding_window'.*4096": ("mixtral", {"sliding_window": 4096}),
    "'sliding_window'.*64": ("llama", {"sliding_window": 64}),
    "layer_types.*sliding": ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
    "partial_rotary_factor": ("llama", {"partial_rotary_factor": 0.5}),
    "partial_rotary_factor.*0.25": (
        "qwen3",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
    ),
    "'factor': 8.0": ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "factor": 8.0}}),
    "decoder_sparse_step": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "mlp_only_layers": ("qwen3_moe", {"mlp_only_layers": [0]}),
    "attn_logit_softcapping": ("llama", {"attn_logit_softcapping": 50.0}),
    "final_logit_softcapping": ("llama", {"final_logit_softcapping": 30.0}),
    "quantization_config": ("llama", {"quantization_config": {"quant_method": "gptq"}}),
    "compression_config": ("llama", {"compression_config": {}}),
    "rope_type.*yarn": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    "rope_type.*linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "rope_parameters.*mrope_section": ("qwen2", {"rope_parameters": {"mrope_section": [1]}}),
    "rope_parameters.*full_attention": ("qwen3", {"rope_parameters": {"full_attention": {}}}),
    "'low_freq_factor' is missing": (
        "llama",
        {"rope_parameters": {k: v for k, v in LLAMA3.items() if k != "low_freq_factor"}},
    ),
    "rope_high_freq must be above": (
        "llama",
        {"rope_parameters": LLAMA3 | {"high_freq_factor": 1.0}},
    ),
    "original_max_position": ("llama", {"original_max_position_embeddings": 8192}),
    "'rope_theta' must be a number": ("llama", {"rope_parameters": {"rope_theta": "1e4"}}),
    "'rope_theta' must be above 0": ("llama", {"rope_parameters": {"rope_theta": -1.0}}),
    "'hidden_size' must be at least 1": ("llama", {"hidden_size": -32}),
    "'hidden_size' must be a whole": ("llama", {"hidden_size": 32.5}),
    "'num_hidden_layers' must be a whole": ("llama", {"num_hidden_layers": float("inf")}),
    "'vocab_size' must be at least 1, and": ("llama", {"vocab_size": 10**30}),
    "'rms_norm_eps' must be": ("llama", {"rms_norm_eps": float("nan")}),
    "'rms_norm_eps' is missing": ("llama", {"rms_norm_eps": None}),
    "'norm_topk_prob' is missing": ("qwen3_moe", {"norm_topk_prob": None}),
    "'tie_word_embeddings' must be": ("llama", {"tie_word_embeddings": 1}),
    "multiple of n_kv_heads": ("llama", {"num_key_value_heads": 3}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_not_understood_is_refused_by_its_name(message):
    layout, change = REFUSED[message]
    with pytest.raises(ValueError, match=message):
        read_config(config_of(layout) | change)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"token_shifts": 1}, "token_shifts"),
        ({"n_experts": 2, "d_shared": 8}, "d_shared"),
        ({"qkv_bias": True}, "qkv_bias together with qk_norm"),
        ({"qkv_bias": True, "qk_norm": False, "n_experts": 2}, "n_experts"),
        ({"qk_norm": False, "n_experts": 2, "norm_topk": False}, "norm_topk"),
        ({"qk_norm": False, "n_heads": 6, "d_head": 8}, "multiple of n_heads"),
    ],
)
def test_a_model_that_no_layout_has_is_refused_by_its_field(settings, name):
    with pytest.raises(ValueError, match=name):
        layout_for(small_model(20, **{"token_shifts": 0} | settings).config)
