"""Hugging Face folders with made-up weights, small and the same everywhere, and what transformers
makes of them.

Names and shapes are written down here once more, without nanotir. `python tests/hf_folders.py`,
where transformers is installed, writes the references anew.
"""

import json
import math
import struct
import tempfile
import zlib
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

REFERENCES = Path(__file__).parent / "data" / "transformers.json"
V, D, F, H, K = 260, 32, 40, 4, 2
WIDTHS = {"vocab_size": V, "hidden_size": D, "intermediate_size": F, "num_hidden_layers": 2}
WIDTHS |= {"num_attention_heads": H, "num_key_value_heads": K, "max_position_embeddings": 128}
WIDTHS |= {"hidden_act": "silu", "rms_norm_eps": 1e-5}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
MOE = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.02}

# Each once as version 5 of transformers writes it, and once as version 4 did. What is left out has
# the layout's default.
NEW = {
    "llama": {"rope_parameters": {"rope_theta": 500.0, **LLAMA3}, "tie_word_embeddings": True},
    "qwen2": {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "qwen3": {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "head_dim": 24},
    "mixtral": MOE | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
    "qwen3_moe": MOE | {"rope_parameters": {"rope_theta": 1e3, "rope_type": "default"}},
}
NEW["mixtral"] |= {"num_local_experts": 4, "sliding_window": None, "head_dim": None}
NEW["qwen3_moe"] |= {"num_local_experts": 4, "moe_intermediate_size": 12, "norm_topk_prob": True}
NEW["qwen3_moe"] |= {"decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False}
NEW["qwen3"] |= {"layer_types": ["full_attention"] * 2, "sliding_window": None}
OLD = {
    "llama": {"rope_theta": 500.0, "rope_scaling": LLAMA3, "tie_word_embeddings": True},
    "qwen2": {"rope_theta": 1e6, "sliding_window": 4096, "use_sliding_window": False},
    "qwen3": {"rope_scaling": None, "head_dim": 24, "attention_bias": False},
    "mixtral": MOE | {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": MOE | {"num_experts": 4, "moe_intermediate_size": 12, "norm_topk_prob": True},
}
OLD["qwen3_moe"] |= {"rope_theta": 1e3, "sliding_window": 4096, "use_sliding_window": False}
LAYOUTS = list(NEW)
DTYPES = {"llama": torch.bfloat16, "qwen2": torch.float16, "qwen3": torch.bfloat16}  # else fp32
CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}

PROMPTS = [[5, 99, 7], [250, 3, 3, 17, 31, 8, 120, 64, 2, 9, 77], [1, 200, 42, 42, 42, 13, 6]]
CHUNK = [11, 222, 33, 144, 55]


def config_of(layout: str, dialect=NEW) -> dict:
    return {"model_type": layout, **WIDTHS, **dialect[layout]}


def shapes_of(layout: str) -> dict[str, tuple]:
    """{name: shape} of a folder's tensors."""
    head = {"qwen3": 24}.get(layout, D // H)
    shapes = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,)}
    if layout != "llama":
        shapes["lm_head.weight"] = (V, D)
    for layer in range(2):
        block = {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
        block |= {"self_attn.q_proj": (H * head, D), "self_attn.k_proj": (K * head, D)}
        block |= {"self_attn.v_proj": (K * head, D), "self_attn.o_proj": (D, H * head)}
        if layout.startswith("qwen3"):
            block |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
        block |= feed_forward(layout)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
        if layout == "qwen2":
            for part, rows in (("q", H), ("k", K), ("v", K)):
                shapes[f"model.layers.{layer}.self_attn.{part}_proj.bias"] = (rows * head,)
    return shapes


def feed_forward(layout: str) -> dict[str, tuple]:
    gate, up, down, width = "gate_proj", "up_proj", "down_proj", F
    places, router = ["mlp"], {}
    if layout == "mixtral":
        gate, up, down = "w1", "w3", "w2"
        places = [f"block_sparse_moe.experts.{e}" for e in range(4)]
        router = {"block_sparse_moe.gate": (4, D)}
    if layout == "qwen3_moe":
        width = 12
        places = [f"mlp.experts.{e}" for e in range(4)]
        router = {"mlp.gate": (4, D)}
    shapes = router
    for place in places:
        shapes |= {f"{place}.{gate}": (width, D), f"{place}.{up}": (width, D)}
        shapes |= {f"{place}.{down}": (D, width)}
    return shapes


def weight(name: str, shape: tuple) -> torch.Tensor:
    """Numbers that look random and follow from the name, by whole numbers alone: exact anywhere."""
    x = torch.arange(math.prod(shape)) + zlib.crc32(name.encode())
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B % 2**32
    uniform = (x.double() / 2**31 - 1).float().view(shape)  # from -1 to 1
    if "norm" in name:
        return 1 + 0.5 * uniform
    return uniform * (3.0 if len(shape) == 1 else 3.0 / shape[1] ** 0.5)


def weights_of(layout: str) -> dict[str, torch.Tensor]:
    dtype = DTYPES.get(layout, torch.float32)
    return {name: weight(name, shape).to(dtype) for name, shape in shapes_of(layout).items()}


def packed(tensors: dict[str, torch.Tensor]) -> bytes:
    """The bytes of a safetensors file."""
    header, body = {}, b""
    for name, tensor in tensors.items():
        piece = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        place = [len(body), len(body) + len(piece)]
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape)}
        header[name]["data_offsets"] = place
        body += piece
    return with_header(json.dumps(header), body)


def with_header(text: str, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + body


def write_folder(folder: Path, layout: str, dialect=NEW, shards: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = weights_of(layout)
    (folder / "config.json").write_text(json.dumps(config_of(layout, dialect)))
    names = list(tensors)
    places = {name: f"model-{i % shards + 1}.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        file = "model.safetensors" if shards == 1 else shard
        held = {name: tensors[name] for name in names if places[name] == shard}
        (folder / file).write_bytes(packed(held))
    if shards > 1:
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(index)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def byte_tokenizer() -> tokenizers.Tokenizer:
    """Every byte is an id, and two more are special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|pad|>", "<|end|>"])
    return made


def reference(folder: Path) -> list[dict]:
    """What transformers makes of a folder, row by row and without a cache."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = []
    for prompt in PROMPTS:
        ids = list(prompt)
        states = []
        with torch.no_grad():
            for _ in range(6):
                states.append(model(torch.tensor([ids])).logits[0, -1])
                ids.append(int(states[-1].argmax()))
            after = model(torch.tensor([ids + CHUNK])).logits[0, -1]
        logits = {"last": shown(states[0]), "after": shown(after)}
        margin = min(float(state.topk(2).values.diff().abs()) for state in states)
        rows.append({**logits, "greedy": ids[len(prompt) :], "margin": round(margin, 3)})
    return rows


def shown(logits: torch.Tensor) -> list[float]:
    """A few of a row's logits."""
    return [round(float(x), 5) for x in logits[::37]]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found = {name: reference(write_folder(Path(folder) / name, name)) for name in LAYOUTS}
    REFERENCES.parent.mkdir(exist_ok=True)
    texts = {name: ",\n ".join(map(json.dumps, rows)) for name, rows in found.items()}
    lines = [f'"{name}": [\n {text}]' for name, text in texts.items()]
    REFERENCES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
