"""The policy: a decoder-only transformer with RMSNorm, RoPE, grouped-query attention and SwiGLU or a mixture of experts; its KV cache.

One forward pass serves training, prefill, decoding and appending a tool's result in one piece. What differs is only the cache:
without one, a token attends to everything before it in its row; with one, a token at position p is written to slot p of its row and
attends to slots 0..p. Rows of one batch may stand at different positions, because tools answer them with texts of different lengths.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.backends.cuda.enable_cudnn_sdp(
    False
)  # cuDNN plans its attention anew for every shape of a batch, which takes it up to half a second


@dataclass
class ModelConfig:
    vocab_size: int = 768  # ids, the tags included
    n_layers: int = 3  # blocks of attention and feed-forward
    d_model: int = 128  # width of the residual stream
    n_heads: int = 4  # query heads
    n_kv_heads: int = 2  # key and value heads; each serves n_heads / n_kv_heads query heads
    d_head: int = 0  # width of a head; 0 means d_model / n_heads
    d_ff: int = 512  # width of the SwiGLU feed-forward layer
    max_seq_len: int = 512  # longest row, in tokens
    rope_theta: float = 100.0  # the rotary embedding's wavelengths go up to about 6 times this; short rows are told apart best by short ones
    norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    qkv_bias: bool = False  # a bias on queries, keys and values (Qwen2)
    qk_norm: bool = True  # RMSNorm on every query and key head (Qwen3)
    tie_embeddings: bool = True  # one matrix reads ids in and logits out
    n_experts: int = 0  # experts in place of each feed-forward layer; 0: a dense model
    n_experts_per_token: int = 2  # how many of them a token passes through
    d_expert: int = 0  # width of an expert; 0 means d_ff / n_experts_per_token: as many weights for a token as the dense layer has
    d_shared: int = (
        0  # width of one more expert that every token passes through (DeepSeekMoE); 0: none
    )
    norm_topk: bool = (
        True  # the chosen experts' probabilities are scaled to sum to 1 (Mixtral, Qwen3)
    )
    router_aux_coef: float = 0.01  # weight of the load-balancing loss
    router_z_coef: float = 0.001  # weight of the z-loss, which keeps the router's logits small

    def __post_init__(self):
        if (
            min(
                self.n_layers,
                self.d_model,
                self.n_heads,
                self.n_kv_heads,
                self.d_ff,
                self.max_seq_len,
            )
            < 1
        ):
            raise ValueError(
                "a model needs at least 1 of everything: n_layers, d_model, n_heads, n_kv_heads, d_ff, max_seq_len"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})"
            )
        if not self.d_head and self.d_model % self.n_heads:
            raise ValueError(
                f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads}), or set d_head"
            )
        self.d_head = self.d_head or self.d_model // self.n_heads
        if self.d_head % 2:
            raise ValueError(f"d_head ({self.d_head}) must be even: RoPE turns pairs of numbers")
        if self.n_experts:
            if not 0 < self.n_experts_per_token <= self.n_experts:
                raise ValueError(
                    f"n_experts_per_token ({self.n_experts_per_token}) must lie between 1 and n_experts ({self.n_experts})"
                )
            self.d_expert = self.d_expert or self.d_ff // self.n_experts_per_token


class KVCache:
    """Keys and values of every layer for `batch` rows of up to `capacity` positions, and how many positions each row holds.

    Slot p of a row holds the token at position p, and a token only ever reads slots up to its own position. So whatever lies
    beyond a row's end is never read: it is overwritten first. Position -1 means padding; it lands in one spare slot at the end.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, device="cpu", dtype=torch.float32
    ):
        shape = (config.n_layers, 2, batch, config.n_kv_heads, capacity + 1, config.d_head)
        self.kv = torch.zeros(
            shape, device=device, dtype=dtype
        )  # (L, 2, B, K, S, D); zeros, since 0 * garbage may be nan
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)  # (B,)

    @property
    def capacity(self) -> int:
        return self.kv.shape[4] - 1

    def write(
        self, layer: int, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, width: int
    ):
        """Store k, v (B, T, K, D) at positions (B, T); return all keys and values of the first `width` slots (B, width, K, D)."""
        rows = torch.arange(len(positions), device=positions.device)[
            :, None
        ]  # (B, 1), against (B, T)
        keys, values = self.kv[layer]
        keys[rows, :, positions] = k.to(keys.dtype)
        values[rows, :, positions] = v.to(values.dtype)
        return keys[:, :, :width].transpose(1, 2), values[:, :, :width].transpose(1, 2)

    def first(self, n: int) -> KVCache:
        """The first n rows, as a view: writing to it writes here."""
        return self._of(self.kv[:, :, :n], self.lengths[:n])

    def take(self, rows, capacity: int | None = None) -> KVCache:
        """A copy of some rows, or of their first `capacity` positions, in the order given; a row may be taken several times."""
        rows = torch.tensor(list(rows), dtype=torch.long, device=self.kv.device)
        slots = (
            self.kv if capacity is None else self.kv[:, :, :, :, : capacity + 1]
        )  # one to spare, as ever
        return self._of(slots[:, :, rows], self.lengths[rows])

    def put(self, rows, other: KVCache):
        """Overwrite rows with the rows of another cache, whose capacity may be smaller."""
        rows = torch.tensor(list(rows), dtype=torch.long, device=self.kv.device)
        self.kv[:, :, rows, :, : other.capacity] = other.kv[..., : other.capacity, :]
        self.lengths[rows] = other.lengths

    @classmethod
    def _of(cls, kv, lengths) -> KVCache:
        cache = cls.__new__(cls)
        cache.kv, cache.lengths = kv, lengths
        return cache


class RMSNorm(nn.Module):
    """x / rms(x) * weight (Zhang and Sennrich 2019, eq. 4); the mean square in fp32 whatever x is."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x * scale).to(x.dtype) * self.weight


def rope_angles(positions, d_head: int, theta: float):
    """cos and sin of position * theta^(-2i/d), each (B, T, 1, d_head/2) (Su et al. 2021, eq. 15)."""
    frequencies = theta ** (-torch.arange(0, d_head, 2, device=positions.device) / d_head)
    angles = positions[..., None, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn the pair (x_i, x_{i+d/2}) of every head by its angle: the layout of Llama and Qwen on Hugging Face. x (B, T, H, D)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def attend(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v for q (B, T, H, D) over k, v (B, S, K, D), H/K query heads to a key head; causal without a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, heads, positions, D)
    if mask is None and q.device.type == "cpu":
        with torch.autocast(
            "cpu", enabled=False
        ):  # in bf16 the CPU's backward of this is six times slower than in fp32
            y = F.scaled_dot_product_attention(
                q.float(), k.float(), v.float(), is_causal=True, enable_gqa=True
            )
    elif mask is None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    else:  # queries that share a key head become more queries to it: every key is then read once
        (B, H, T, D), K = q.shape, k.shape[1]
        shared = q.reshape(B, K, H // K * T, D)
        mask = (
            mask.repeat(1, 1, H // K, 1) if T > 1 else mask
        )  # (B, 1, H/K*T, S); a single query's mask broadcasts
        y = F.scaled_dot_product_attention(shared, k, v, attn_mask=mask).reshape(B, H, T, D)
    return y.transpose(1, 2)  # (B, T, H, D)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.d_head = config.n_heads, config.n_kv_heads, config.d_head
        self.qkv = nn.Linear(
            config.d_model, (self.heads + 2 * self.kv_heads) * self.d_head, bias=config.qkv_bias
        )
        self.out = nn.Linear(self.heads * self.d_head, config.d_model, bias=False)
        norm = lambda: RMSNorm(self.d_head, config.norm_eps) if config.qk_norm else nn.Identity()
        self.q_norm, self.k_norm = norm(), norm()

    def forward(self, x, rope, mask, store):
        B, T, _ = x.shape
        q, k, v = (
            self.qkv(x)
            .view(B, T, -1, self.d_head)
            .split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        )
        q, k = rotate(self.q_norm(q), *rope), rotate(self.k_norm(k), *rope)
        k, v = store(k, v)  # with a cache: this row's whole past, (B, S, K, D)
        return self.out(attend(q, k, v, mask).reshape(B, T, -1))  # (B, T, H, D) -> (B, T, H*D)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020, eq. 6)."""

    def __init__(self, d_model: int, width: int):
        super().__init__()
        self.gate_up = nn.Linear(d_model, 2 * width, bias=False)
        self.down = nn.Linear(width, d_model, bias=False)

    def forward(self, x, routing=None):  # there is nothing to route
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


@dataclass
class Routing:
    """What the routers decided in one forward pass: whoever wants to know passes an empty one in. One entry for each layer."""

    logits: list[torch.Tensor] = field(default_factory=list)  # each (B, T, E)
    chosen: list[torch.Tensor] = field(
        default_factory=list
    )  # each (B, T, k), the likeliest expert first


class MoE(nn.Module):
    """Mixture of experts (Shazeer et al. 2017, eq. 1): the sum of p_e expert_e(x) over the k likeliest experts e, plus shared(x).

    No expert has a capacity, so no token is ever dropped, and none depends on what its neighbours in the batch choose.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.k, self.norm_topk = config.n_experts_per_token, config.norm_topk
        self.router = nn.Linear(config.d_model, config.n_experts, bias=False)
        self.experts = nn.ModuleList(
            FeedForward(config.d_model, config.d_expert) for _ in range(config.n_experts)
        )
        self.shared = FeedForward(config.d_model, config.d_shared) if config.d_shared else None

    def forward(self, x, routing: Routing | None = None):
        logits, weights, chosen = self.route(x)
        if routing is not None:
            routing.logits.append(logits)
            routing.chosen.append(chosen)
        flat = x.flatten(0, 1)  # (B, T, d) -> (N, d)
        by_expert = chosen.flatten().argsort(
            stable=True
        )  # the N*k pairs (token, slot), those of one expert side by side
        tokens, counts = (
            by_expert // self.k,
            chosen.flatten().bincount(minlength=len(self.experts)).tolist(),
        )
        pieces = [
            expert(piece) for expert, piece in zip(self.experts, flat[tokens].split(counts))
        ]  # one matmul chain an expert
        pairs = torch.cat(pieces) * weights.flatten()[by_expert, None]  # (N*k, d)
        out = torch.zeros_like(flat) if self.shared is None else self.shared(flat).to(x.dtype)
        return out.index_add(0, tokens, pairs.to(x.dtype)).view_as(x)  # (N, d) -> (B, T, d)

    def route(self, x):
        """The router's logits (B, T, E); the k chosen experts' weights and numbers (B, T, k). In fp32 under autocast too: rounding
        would not only blur a choice but change it (Fedus et al. 2021, section 2.4)."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router.weight.float())
            weights, chosen = logits.softmax(-1).topk(self.k)
        return (
            logits,
            weights / weights.sum(-1, keepdim=True) if self.norm_topk else weights,
            chosen,
        )


class Block(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.ff_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ff = MoE(config) if config.n_experts else FeedForward(config.d_model, config.d_ff)

    def forward(self, x, rope, mask, store, routing, wanted=None):
        x = x + self.attention(self.attention_norm(x), rope, mask, store)
        if wanted is not None:
            x = x[wanted][None]  # (B, T, d) -> (1, N, d): still rows of tokens, as MoE takes them
        return x + self.ff(self.ff_norm(x), routing)


class Transformer(nn.Module):
    def __init__(self, config: ModelConfig, seed: int = 0):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.reset_parameters(seed)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def reset_parameters(self, seed: int = 0):
        """Normal weights: std 0.02, smaller by sqrt(2L) where a block writes to the residual stream (GPT-2). Embeddings start large, so
        that rare ids are told apart from the first step: a small model then learns to copy any id, not one id after the other."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                writes, embeds = (
                    name.endswith(("out.weight", "down.weight")),
                    name == "embed.weight",
                )
                std = (
                    0.02 / (2 * self.config.n_layers) ** 0.5
                    if writes
                    else 3.4 / self.config.d_model**0.5
                    if embeds
                    else 0.02
                )
                nn.init.normal_(weight, 0.0, std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids, positions=None, cache: KVCache | None = None):
        """Logits (B, T, V) of the next token after each of ids (B, T).

        Without a cache, ids are whole rows (right-padded: nothing looks ahead, so padding needs no mask). With one, they go on
        where the cache stands, or at `positions` (B, T), where -1 marks padding; the cache is extended.
        """
        return self.head(self.hidden(ids, positions, cache))

    def hidden(
        self,
        ids,
        positions=None,
        cache: KVCache | None = None,
        routing: Routing | None = None,
        wanted=None,
    ):
        """The last hidden states (B, T, d_model), for callers that need logits only at some positions, or none. Fills in `routing`.

        With `wanted` (B, T), which sets N positions, only theirs, (1, N, d_model): the others go no further than the last attention.
        """
        positions, mask = self._where(ids, positions, cache)
        rope = rope_angles(positions, self.config.d_head, self.config.rope_theta)
        x = self.embed(ids)
        for layer, block in enumerate(self.blocks):
            if cache is None:
                store = lambda k, v: (k, v)
            else:
                store = lambda k, v: cache.write(layer, k, v, positions, mask.shape[-1])
            x = block(x, rope, mask, store, routing, wanted if block is self.blocks[-1] else None)
        return self.norm(x)

    def _where(self, ids, positions, cache):
        """Positions (B, T) of the new tokens and, with a cache, which of its slots each may read (B, 1, T, S)."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        if cache is None:
            return steps.expand(ids.shape) if positions is None else positions, None
        if positions is None:
            positions = cache.lengths[:, None] + steps
        cache.lengths.copy_(torch.maximum(cache.lengths, positions.amax(1) + 1))
        width = int(cache.lengths.max())
        assert width <= cache.capacity, f"position {width - 1} in a cache of {cache.capacity}"
        return positions, torch.arange(width, device=ids.device) <= positions[:, None, :, None]
