"""The policy: a decoder-only transformer with RMSNorm, RoPE, grouped-query attention and SwiGLU.

One forward pass serves training, prefill, decoding and appending a tool's result. Only the cache
differs. Without one, an id attends to everything before it in its row. With one (see cache.py), it
attends to what its row has stored up to its own position.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanotir import gradients, native
from nanotir.cache import KVCache
from nanotir.checks import Amount, Count, Positive, Whole, check_settings
from nanotir.rope import rope_angles, rotate


@dataclass
class ModelConfig:
    vocab_size: Count = 1024  # ids, the tags included
    n_layers: Count = 3  # blocks of attention and feed-forward
    d_model: Count = 128  # width of the residual stream
    n_heads: Count = 4  # query heads
    n_kv_heads: Count = 4  # key and value heads; each serves n_heads / n_kv_heads query heads
    d_head: Whole = 0  # width of a head; 0 means d_model / n_heads
    d_ff: Count = 512  # width of the SwiGLU feed-forward layer
    max_seq_len: Count = 512  # longest row, in ids
    token_shifts: Whole = 4  # so many ids before it are mixed into each id's embedding
    rope_theta: Positive = 1e8  # base of the rotary frequencies: theta^(-2i / d_head)
    rope_factor: Positive = 1.0  # multiplies long wavelengths (Llama 3.1); 1: no change
    rope_low_freq: Positive = 1.0  # long: at most so many turns in rope_original_len ids
    rope_high_freq: Positive = 4.0  # short, unchanged: at least so many; between: interpolated
    rope_original_len: Count = 8192  # the longest row of pretraining, before this change
    norm_eps: Positive = 1e-6  # added to the mean square in RMSNorm
    qkv_bias: bool = False  # a bias on queries, keys and values (Qwen2)
    qk_norm: bool = True  # RMSNorm on every query and key head (Qwen3)
    tie_embeddings: bool = True  # one matrix reads ids in and logits out
    n_experts: Whole = 0  # experts in place of each feed-forward layer; 0: a dense model
    n_experts_per_token: Count = 2  # experts that a token passes through
    d_expert: Whole = 0  # width of an expert; 0 means d_ff / n_experts_per_token
    d_shared: Whole = 0  # width of an expert that every token passes through (DeepSeekMoE)
    norm_topk: bool = True  # scale the chosen experts' probabilities to sum to 1 (Mixtral, Qwen3)
    router_aux_coef: Amount = 0.01  # weight of the load-balancing loss
    router_z_coef: Amount = 0.001  # weight of the z-loss, which keeps the router's logits small

    def __post_init__(self):
        check_settings(self, "model")
        if self.n_heads % self.n_kv_heads:
            raise ValueError("n_heads must be a multiple of n_kv_heads")
        if not self.d_head and self.d_model % self.n_heads:
            raise ValueError("d_model must be a multiple of n_heads, or set d_head")
        self.d_head = self.d_head or self.d_model // self.n_heads
        if self.d_head % 2:
            raise ValueError(f"d_head ({self.d_head}) must be even: RoPE rotates pairs of numbers")
        if self.rope_high_freq <= self.rope_low_freq:
            raise ValueError("rope_high_freq must be above rope_low_freq")
        if self.n_experts:
            if self.n_experts_per_token > self.n_experts:
                raise ValueError("n_experts_per_token must lie between 1 and n_experts")
            self.d_expert = self.d_expert or max(1, self.d_ff // self.n_experts_per_token)


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, eq. 4), with the mean square in fp32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        x = x.to(self.weight.dtype)
        if native.serves(x):
            return gradients.RMSNorm.apply(x, self.weight.float(), self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v for q (B, T, H, D) over k, v (B, S, K, D).

    H is a multiple of K. `bias` (B, 1, T, S) is 0 for the slots that a query may read and -inf for
    the others. Without it, attention is causal.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, positions, D)
    if bias is None and q.device.type == "cpu":
        # In bf16 the CPU's backward pass of this is slower than in fp32.
        dtype = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast("cpu", enabled=False):
            heads = (q.to(dtype), k.to(dtype), v.to(dtype))
            y = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).to(v.dtype)
    elif bias is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:
        # The query heads of a key head become more queries to it, so each key is read once.
        B, H, T, D = q.shape
        K = k.shape[1]
        if T > 1:  # the bias of a single query broadcasts
            bias = bias.repeat(1, 1, H // K, 1)  # (B, 1, H/K*T, S)
        q = q.reshape(B, K, H // K * T, D)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).reshape(B, H, T, D)
    return y.transpose(1, 2)  # (B, T, H, D)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.d_head = config.d_head
        width = (self.heads + 2 * self.kv_heads) * self.d_head
        self.qkv = nn.Linear(config.d_model, width, bias=config.qkv_bias)
        self.out = nn.Linear(self.heads * self.d_head, config.d_model, bias=False)
        self.qk_norm = config.qk_norm
        if self.qk_norm:
            self.q_norm = RMSNorm(self.d_head, config.norm_eps)
            self.k_norm = RMSNorm(self.d_head, config.norm_eps)

    def forward(self, x, layout: Layout, layer: int):
        B, T, _ = x.shape
        heads = self.qkv(x)  # (B, T, (H+2K)*D)
        if layout.cache is None and native.serves(heads):
            return self.out(gradients.attention(self, heads, layout))
        assert not layout.packed
        heads = heads.view(B, T, -1, self.d_head)  # (B, T, H+2K, D)
        if T == 1 and layout.cache is not None and layout.cache.kernel:
            return self.out(layout.cache.kernel(self, heads, layout, layer))
        qk, v = heads.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.qk_norm:
            q, k = qk.split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        qk = rotate(qk, layout.cos, layout.sin)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        if layout.cache is not None:  # read the row's whole past, (B, S, K, D)
            k, v = layout.cache.write(layer, k, v, layout.positions, layout.bias.shape[-1])
        return self.out(attend(q, k, v, layout.bias).reshape(B, T, -1))  # (B, T, H*D)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x):
        gate_up = self.gate_up(x)  # (..., 2 * width)
        if native.serves(gate_up):
            return self.down(gradients.SwiGLU.apply(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MoE(nn.Module):
    """The sum of p_e expert_e(x) over the k likeliest experts e (Shazeer et al. 2017, eq. 1).

    Experts have no capacity limit: no token depends on what its neighbours choose.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.k, self.norm_topk = config.n_experts_per_token, config.norm_topk
        self.router = nn.Linear(config.d_model, config.n_experts, bias=False)
        experts = (FeedForward(config.d_model, config.d_expert) for _ in range(config.n_experts))
        self.experts = nn.ModuleList(experts)
        self.shared = FeedForward(config.d_model, config.d_shared) if config.d_shared else None

    def forward(self, x, routing=None):
        logits, weights, chosen = self.route(x)
        if routing is not None:
            routing.logits.append(logits)
            routing.chosen.append(chosen)

        # Sort the N*k pairs of token and choice by expert: each expert then sees one matrix.
        flat = x.flatten(0, 1)  # (B, T, d) -> (N, d)
        by_expert = chosen.flatten().argsort(stable=True)  # (N*k,)
        tokens = by_expert // self.k
        counts = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        pieces = flat[tokens].split(counts)
        outputs = torch.cat([expert(piece) for expert, piece in zip(self.experts, pieces)])
        outputs = outputs * weights.flatten()[by_expert, None]  # (N*k, d)

        out = torch.zeros_like(flat) if self.shared is None else self.shared(flat).to(x.dtype)
        return out.index_add(0, tokens, outputs.to(x.dtype)).view_as(x)  # (N, d) -> (B, T, d)

    def route(self, x):
        """The router's logits (B, T, E); the chosen experts' weights and numbers, each (B, T, k).

        In fp32 under autocast too: rounding could change the choice (Fedus et al. 2021, sec. 2.4).
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
            weights, chosen = logits.softmax(-1).topk(self.k)
        if self.norm_topk:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, chosen


@dataclass
class Layout:
    """Where the ids of one forward pass stand: what every layer's attention needs to know."""

    positions: Tensor  # (B, T)
    cos: Tensor  # (B, T, 1, D)
    sin: Tensor
    cache: KVCache | None
    bias: Tensor | None  # (B, 1, T, S): 0 for slots of the cache that an id may read, else -inf
    packed: bool = False  # several rows lie one behind the other in T, for gradients.attention


def layout_of(ids: Tensor, positions: Tensor | None, cache, config: ModelConfig) -> Layout:
    """Where ids (B, T) stand, their rotations and, with a cache, the slots that each may read.

    Without `positions` (B, T), they begin a row, or go on where the cache ends. A cache stores the
    ids (`extend`), and holds the rotations of all its positions (`rope`).
    """
    if positions is None:
        steps = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        positions = steps.expand(ids.shape) if cache is None else cache.lengths[:, None] + steps
    if cache is None:
        return Layout(positions, *rope_angles(positions, config), None, None)
    slots = torch.arange(cache.extend(ids, positions), device=ids.device)  # (S,)
    visible = slots <= positions[:, None, :, None]  # (B, 1, T, S)
    bias = torch.where(visible, 0.0, float("-inf")).to(cache.dtype)
    return Layout(positions, *cache.rope[:, positions], cache, bias)


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.ff_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ff = MoE(config) if config.n_experts else FeedForward(config.d_model, config.d_ff)

    def forward(self, x, layout: Layout, layer: int, routing=None, mask=None):
        x = x + self.attention(self.attention_norm(x), layout, layer)
        if mask is not None:
            x = x[mask][None]  # (B, T, d) -> (1, N, d)
        if routing is not None and len(routing.logits) > layer:
            routing = None  # filled in already: this is the second pass of a checkpoint
        h = self.ff_norm(x)
        return x + (self.ff(h, routing) if isinstance(self.ff, MoE) else self.ff(h))


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.checkpointing = False  # compute each block's activations again in the backward pass
        numbers = torch.empty(config.vocab_size, config.d_model)  # drawn below
        self.embed = nn.Embedding.from_pretrained(numbers, freeze=False)
        shift = partial(nn.Linear, config.d_model, config.d_model, bias=False)
        self.shifts = nn.ModuleList(shift() for _ in range(config.token_shifts))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if not self.embed.weight.is_meta:  # one without numbers is about to be filled
            self.reset_parameters(seed)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def reset_parameters(self, seed: int = 0):
        """Normal weights with std 0.02, smaller by sqrt(2L) where a block ends (GPT-2).

        Embeddings start larger: a small model then tells rare ids apart from the first step on, and
        learns to copy all of them at once.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            std = 0.02
            if name.endswith(("out.weight", "down.weight")):
                std = 0.02 / (2 * self.config.n_layers) ** 0.5
            elif name == "embed.weight":
                std = 3.4 / self.config.d_model**0.5
            elif name.startswith("shifts"):
                std = 0.5 / self.config.d_model**0.5
            if weight.dim() == 2:
                nn.init.normal_(weight, 0.0, std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids: Tensor, positions=None, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) of the next id after each of ids (B, T).

        Without a cache, ids are whole rows, right-padded (or packed, see `hidden`). With one, they
        extend it, from where it stands or at `positions` (B, T), where -1 marks padding.
        """
        return self.head(self.hidden(ids, positions, cache))

    def hidden(self, ids, positions=None, cache=None, routing=None, mask=None):
        """The last hidden states (B, T, d_model), for callers that need few logits, or none.

        Fills in a routing.Routing. A `mask` (B, T) selects N positions: only their states are
        returned, (1, N, d_model), and the others skip the last feed-forward layer. In training on a
        CPU, `positions` may hold several rows one behind the other (logps.packed).
        """
        layout = layout_of(ids, positions, cache, self.config)
        if cache is None and positions is not None:
            layout.packed = bool((positions.diff() <= 0).any())
        x = self.embedded(ids, layout)  # (B, T, d)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            given = (x, layout, layer, routing, mask if block is self.blocks[-1] else None)
            x = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        return self.norm(x)

    def embedded(self, ids, layout: Layout) -> Tensor:
        """The embedding of each id, plus those of the ids before it, each by a matrix of its own.

        An attention head can then find an id by those that precede it, and go on from there as it
        did: so even one layer can copy ("smeared keys", Olsson et al. 2022).
        """
        x = self.embed(ids)  # (B, T, d)
        if layout.cache is None:
            row, places = ids, torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
            precede = torch.minimum(places, layout.positions)  # ids of its row
        else:
            row, places = layout.cache.ids, layout.positions
            precede = places
        for back, shift in enumerate(self.shifts, 1):
            before = row.gather(1, (places - back).clamp(min=0))  # (B, T)
            x = x + shift(self.embed(before)) * (precede >= back)[..., None]
        return x
