"""What transformers calls the parts of a model: config.json and the names of tensors, both ways.

A layout is what transformers calls a model_type. What a config asks for beyond it is refused
by the name of its field: no folder gives wrong logits silently.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nanotir.checks import check_value, hints_of
from nanotir.model import ModelConfig

# A field of ModelConfig, and its key in config.json.
KEYS = {
    "vocab_size": "vocab_size",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "d_ff": "intermediate_size",
    "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
MIXTRAL_KEYS = {
    "n_experts": "num_local_experts",
    "n_experts_per_token": "num_experts_per_tok",
    "d_expert": "intermediate_size",
    "router_aux_coef": "router_aux_loss_coef",
}
QWEN3_MOE_KEYS = MIXTRAL_KEYS | {"d_expert": "moe_intermediate_size", "norm_topk": "norm_topk_prob"}
ROPE_KEYS = {
    "rope_factor": "factor",
    "rope_low_freq": "low_freq_factor",
    "rope_high_freq": "high_freq_factor",
    "rope_original_len": "original_max_position_embeddings",
}
ALL_ROPE_KEYS = {*ROPE_KEYS.values(), "rope_theta", "rope_type", "type", "partial_rotary_factor"}

# The only values that these keys may have, if they are there.
ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "original_max_position_embeddings": None,  # transformers reads it among the rope parameters
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "quantization_config": None,
    "compression_config": None,
}

# Parameters' names in transformers: whole names, then replacements made in this order.
OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
NAMES = {
    "blocks.": "model.layers.",
    "attention_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "attention.out": "self_attn.o_proj",
    "attention.": "self_attn.",
    "ff.router": "mlp.gate",
    "ff.": "mlp.",
    "down": "down_proj",
}
MIXTRAL_NAMES = {"mlp.": "block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
PARTS = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}


@dataclass(frozen=True)
class Layout:
    architecture: str
    qkv_bias: bool = False
    qk_norm: bool = False
    keys: dict[str, str] = field(default_factory=dict)  # beyond KEYS
    names: dict[str, str] = field(default_factory=dict)  # replacements after NAMES
    rope_theta: float = 1e4  # where config.json has none
    window_flag: bool = True  # whether sliding_window counts only with use_sliding_window


LAYOUTS = {
    "llama": Layout("LlamaForCausalLM", window_flag=False),
    "qwen2": Layout("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Layout("Qwen3ForCausalLM", qk_norm=True),
    "mixtral": Layout("MixtralForCausalLM", False, False, MIXTRAL_KEYS, MIXTRAL_NAMES, 1e6, False),
    "qwen3_moe": Layout("Qwen3MoeForCausalLM", qk_norm=True, keys=QWEN3_MOE_KEYS),
}


def read_config(config: dict) -> tuple[Layout, ModelConfig]:
    """From a config.json of transformers 4 or 5. ValueError that names what is not understood."""
    check_known("model_type", config.get("model_type"), LAYOUTS)
    layout = LAYOUTS[config["model_type"]]
    check_only(config, ONLY if layout.window_flag else ONLY | {"sliding_window": None})
    for kind in config.get("layer_types") or []:
        check_known("layer_types", kind, ["full_attention"])
    rope = read_rope(config, layout)

    # Some versions leave these out, or set them to null.
    config = {key: value for key, value in config.items() if value is not None}
    config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
    config.setdefault("head_dim", 0)
    config.setdefault("tie_word_embeddings", False)
    config.setdefault("router_aux_loss_coef", 0.001)
    config.setdefault("num_local_experts", config.get("num_experts"))  # Qwen3 MoE in version 4

    own = {"token_shifts": 0, "qkv_bias": layout.qkv_bias, "qk_norm": layout.qk_norm}
    return layout, ModelConfig(**own, **rope, **settings(config, KEYS | layout.keys))


def read_rope(config: dict, layout: Layout) -> dict:
    """The fields of ModelConfig for the rotary embedding."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    for key in rope:
        check_known("rope_parameters", key, ALL_ROPE_KEYS)
    check_only(rope, {"partial_rotary_factor": 1})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    check_known("rope_type", kind, ("default", "llama3"))
    theta = rope.get("rope_theta") or config.get("rope_theta") or layout.rope_theta
    if kind == "default":
        check_only(rope, {"factor": 1})
    keys = {"rope_theta": "rope_theta"} | (ROPE_KEYS if kind == "llama3" else {})
    return settings(rope | {"rope_theta": theta}, keys)


def settings(config: dict, keys: dict[str, str]) -> dict:
    """{field of ModelConfig: value}. ValueError for the first that is missing or makes no sense."""
    hints = hints_of(ModelConfig)
    for name, key in keys.items():
        if key not in config:
            raise ValueError(f"'{key}' is missing")
        check_value(f"'{key}'", config[key], hints[name])
    return {name: config[key] for name, key in keys.items()}


def check_known(key: str, value, known):
    if str(value) not in known:
        raise ValueError(f"'{key}': {str(value):.60} is not supported, only {', '.join(known)}")


def check_only(config: dict, only: dict):
    for key, value in only.items():
        if config.get(key) not in (None, value):
            raise ValueError(f"'{key}': {str(config[key]):.60} is not supported, only {value}")


def layout_for(config: ModelConfig) -> str:
    """The layout that has what a model has. ValueError that names the field that none has."""
    for name in ("token_shifts", "d_shared"):
        if getattr(config, name):
            raise ValueError(f"no layout of transformers has {name}, which is not 0")
    wanted = (config.qkv_bias, config.qk_norm, config.n_experts > 0)
    for name, layout in LAYOUTS.items():
        if wanted == (layout.qkv_bias, layout.qk_norm, bool(layout.keys)):
            if config.n_experts and not config.norm_topk and "norm_topk" not in layout.keys:
                raise ValueError("the layout without qk_norm needs norm_topk")
            if name == "llama" and config.d_model % config.n_heads:
                raise ValueError("d_model must be a multiple of n_heads without qk_norm")
            return name
    raise ValueError("no layout of transformers has qkv_bias together with qk_norm or n_experts")


def write_config(config: ModelConfig, name: str) -> dict:
    """config.json of the layout `name`, with the rotary embedding as versions 4 and 5 have it."""
    layout = LAYOUTS[name]
    scaling = None
    if config.rope_factor != 1:
        scaling = {key: getattr(config, field) for field, key in ROPE_KEYS.items()}
        scaling["rope_type"] = "llama3"
    default = {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "architectures": [layout.architecture],
        "model_type": name,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": default | (scaling or {}),
        **{key: getattr(config, field) for field, key in (KEYS | layout.keys).items()},
    }


def tensor_names(parameter: str, layout: Layout) -> list[str]:
    """The names in transformers of what one parameter holds, from top to bottom."""
    if parameter in OUTER:
        return [OUTER[parameter]]
    name = replaced(parameter, NAMES)
    names = [name]
    for fused, parts in PARTS.items():
        if fused in name:
            names = [name.replace(fused, part) for part in parts]
    return [replaced(name, layout.names) for name in names]


def replaced(name: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name
