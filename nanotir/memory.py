"""What a run needs of memory at its peak, known before its first step.

`predicted_peak` are formulas over shapes, which make no tensor. On a GPU, the largest micro-batch
runs as well, forwards and backwards. On a CPU, the prediction is compared with what Linux says is
available. Where nothing says that (macOS, mps), it is shown and not compared. It leaves out what
Python, PyTorch's libraries and the tools take, about 0.5 GB, and 0.3 GB more for each worker.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nanotir import native, threads
from nanotir.graphs import APART
from nanotir.logps import CHUNK, CHUNK_ON_GPU, CHUNKED_FROM, autocast, masked_logps, packs
from nanotir.model import ModelConfig
from nanotir.processes import on_this_machine
from nanotir.routing import Routing

CONTAINER = Path("/sys/fs/cgroup")
KNOBS = {  # the setting that the peak of each phase grows with
    "imitation": "sft.micro_batch_tokens",
    "RL": "rl.micro_batch_tokens",
    "sampling": "sampler.max_rows",
}


@dataclass
class Sizes:
    """Bytes of a number between blocks (w), in matrix products (c) and in attention (s)."""

    w: int
    c: int
    s: int
    rank: int = 0  # of the adapters; 0: all weights are trained
    chunk: int = CHUNK  # rows of logits that are held at a time, of a large vocabulary
    cpp: bool = False  # formulas and attention are computed in C++, which keeps less
    norms: int = 0  # kept by a norm beside its input on a CPU without C++, about


def check_memory(run) -> str:
    """A line about a run's memory at its peak. ValueError, with what to change, if it is too much.

    Weights, optimisers and random states stay as they are, bit for bit.
    """
    model, config = run.model, run.config
    questions = [problem.question for problem in (*run.problems, *run.held_out)]
    prompt = len(run.format.prompt(run.tokenizer, max(questions, key=len)))
    peaks = predicted_peak(model, config, prompt)
    phase = max(peaks, key=lambda name: sum(peaks[name].values()))
    need, free = sum(peaks[phase].values()), free_memory(model)
    short, target = free is not None and need > free, free
    if not short and model.embed.weight.device.type == "cuda" and phase != "sampling":
        try:
            need = real_peak(model, config, prompt, phase)
        except torch.OutOfMemoryError:
            short, target = True, 0.8 * need  # the formulas said less than it takes
    if short:
        needs = f"{phase} needs about {need / 1e9:.2f} GB of memory and does not fit into the"
        mending = mend(model, config, prompt, target)
        raise ValueError(f"{needs} {free / 1e9:.2f} GB that are free: {mending}")
    parts = ", ".join(f"{part} {size / 1e9:.2f}" for part, size in peaks[phase].items())
    there = "" if free is None else f" of {free / 1e9:.1f}"
    return f"memory: about {need / 1e9:.2f}{there} GB at the peak, in {phase} ({parts})"


def free_memory(model) -> int | None:
    """Bytes that this process may use, the model's weights included; None if nothing says so."""
    device = model.embed.weight.device
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    kilobytes = re.search(r"MemAvailable: +(\d+)", meminfo.read_text())
    if not kilobytes:
        return None
    free = 1024 * int(kilobytes[1])
    limit = CONTAINER / "memory.max"
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int((CONTAINER / "memory.current").read_text()))
    return free // on_this_machine() + bytes_of(model.parameters())


def mend(model, config, prompt: int, free: float) -> str:
    """Which settings to lower, and to what, for a peak of at most `free` bytes."""

    def fits(phase: str) -> bool:
        return sum(predicted_peak(model, config, prompt)[phase].values()) <= free

    lowered = []
    for phase in predicted_peak(model, config, prompt):
        setting = KNOBS[phase]
        section, _, name = setting.partition(".")
        settings = getattr(config, section)
        start = value = getattr(settings, name)
        while value > 1 and not fits(phase):
            value //= 2
            settings = replace(settings, **{name: value})
            config = replace(config, **{section: settings})
        if not fits(phase):
            one = "--threads 1, " if threads.at_a_time > 1 else ""
            smaller = "--gradient-checkpointing true, --lora 16 --weights bf16, or a smaller model"
            return f"take {one}{smaller}"
        if value < start:
            lowered.append(f"--{setting.replace('_', '-')} to {value}")
    return "lower " + " and ".join(lowered)


def predicted_peak(model, config, prompt: int) -> dict[str, dict[str, float]]:
    """{phase: {part: bytes}} of a run whose longest prompt has so many ids.

    The parts of a phase are held at the same time. Gradients and moments are those of the second
    micro-batch and step, when all are there. Demonstrations count as rows as long as answers.
    """
    trained = bytes_of(weight for weight in model.parameters() if weight.requires_grad)
    matrices = 0 if config.lora else bytes_of(w for w in model.blocks.parameters() if w.dim() == 2)
    copies = {"reference": trained if config.lora else bytes_of(model.parameters())}
    peaks = {}
    if config.sft.steps:
        moments = 2 * trained - matrices  # Muon has one for each weight, AdamW two
        peaks["imitation"] = training_parts(model, config, config.sft, prompt, moments)
    if config.rl.steps:
        parts = training_parts(model, config, config.rl, prompt, 2 * trained)
        peaks["RL"] = parts | (copies if config.rl.beta else {})
    peaks["sampling"] = sampling_parts(model, config, prompt)
    if config.rl.steps:
        peaks["sampling"] |= {"moments": 2 * trained} | (copies if config.rl.beta else {})
    if workers := samplers(config) - 1:  # each has weights of its own, without adapters
        held = {"workers": workers * bytes_of(model.parameters())}
        peaks = {phase: parts | held for phase, parts in peaks.items()}
    return peaks


def training_parts(model, config, settings, prompt: int, moments: float) -> dict[str, float]:
    """The parts of an optimiser step. `settings` is an SFTConfig or an RLConfig."""
    m, sizes = model.config, sizes_of(model, settings.bf16, config.lora)
    rows, length = largest_batch(model, config, settings, prompt)
    tokens = rows * (length - 1)
    with autocast(model.embed.weight.device, settings.bf16):
        if packs(model):  # rows of other lengths fill a micro-batch up
            tokens = max(settings.micro_batch_tokens, length - 1)
    learned = tokens * min(length - 1, config.sampler.max_new_tokens) // (length - 1)
    activations, logits = saved_by(m, sizes, tokens, learned, settings is config.rl)
    cuda = model.embed.weight.device.type == "cuda"
    if cuda and sizes.c == 4 and m.n_heads > m.n_kv_heads:
        # No kernel covers this, so each block keeps its whole matrix of attention.
        activations += m.n_layers * tokens * m.n_heads * length * 4
    if config.gradient_checkpointing:
        activations, logits = checkpointed(m, sizes, tokens, activations, logits)
    trained = bytes_of(weight for weight in model.parameters() if weight.requires_grad)
    rounded = sizes.c * sum(w.numel() for w in model.parameters()) if sizes.c < sizes.w else 0
    # Of several micro-batches each has its gradients, one more than are computed, and their sum.
    n = threads.at_a_time
    return {
        "weights": bytes_of(model.parameters()) + n * rounded,
        "gradients": trained if n == 1 else (n + 2) * trained,
        "moments": moments,
        "activations": n * activations,
        "logits": n * logits,
    }


def saved_by(m: ModelConfig, sizes: Sizes, tokens: int, learned: int, entropy: bool):
    """(bytes of activations, bytes of logits) at the end of a forward pass over so many tokens.

    The last feed-forward layer is computed for learned tokens alone, unless routers count them all.
    """
    last = tokens if m.n_experts else learned
    attention, ff = saved_by_attention(m, sizes), saved_by_ff(m, sizes)
    blocks = m.n_layers * tokens * attention + ((m.n_layers - 1) * tokens + last) * ff
    shifts = 0 if sizes.rank else m.token_shifts * sizes.c * m.d_model
    around = tokens * (shifts + 8 * m.d_head) + last * (sizes.w * m.d_model + 4)
    return blocks + around, logits_of(m, sizes, learned, entropy)


def checkpointed(m: ModelConfig, sizes: Sizes, tokens: int, activations: float, logits: float):
    """The same when the blocks keep their inputs alone: all of one block, or else the logits.

    Gradients pass through that block: of its feed-forward product and, scaled, of adapters.
    """
    width = m.n_experts_per_token * m.d_expert + m.d_shared if m.n_experts else m.d_ff
    passing = (3 if sizes.rank else 1) * sizes.c * width + 2 * sizes.w * m.d_model
    inputs = m.n_layers * tokens * sizes.w * m.d_model
    head = 0 if sizes.rank else sizes.w * m.vocab_size * m.d_model
    block = activations / m.n_layers + tokens * passing + head
    return (inputs + block, 0.0) if block > logits else (inputs, logits)


def largest_batch(model, config, settings, prompt: int) -> tuple[int, int]:
    """(rows, ids in a row) of the largest micro-batch of rows as long as they get."""
    length = longest_row(model, config, prompt)
    return max(1, settings.micro_batch_tokens // length), length


def sampling_parts(model, config, prompt: int) -> dict[str, float]:
    """The parts of decoding. The cache is there twice while rows are moved."""
    m, sizes = model.config, sizes_of(model, config.sampler.bf16, 0)
    rows = most_rows(config)
    slots = rows * (longest_row(model, config, prompt) + 1)
    # Each process that samples has a copy: of the matrices by columns (graphs.py), or rounded.
    if model.embed.weight.device.type == "cpu" and sizes.c == 4:
        layers = [x for x in model.modules() if hasattr(x, "weight") and x is not model.embed]
        matrices = [layer.weight for layer in layers if layer.weight.dim() == 2]
        copied = sum(4 * (N + APART) * K for N, K in (matrix.shape for matrix in matrices))
    else:
        copied = sizes.c * sum(w.numel() for w in model.parameters()) if sizes.c < sizes.w else 0
    merged = bytes_of(w for w in model.blocks.parameters() if w.dim() == 2) if config.lora else 0
    return {
        "weights": bytes_of(model.parameters()) + samplers(config) * copied + merged,
        "cache": 2 * slots * m.n_layers * 2 * m.n_kv_heads * m.d_head * sizes.c,
        "logits": 6 * 4 * rows * m.vocab_size,
    }


def samplers(config) -> int:
    """How many processes sample: this one and its workers."""
    return 1 if config.answers else threads.at_a_time


def most_rows(config) -> int:
    """Rows decoded at the same time: sampler.max_rows a process, or fewer if fewer are asked."""
    asked = [config.eval.problems * config.eval.samples]
    if config.rl.steps:
        em = config.recipe == "autocode"
        each = config.autocode.samples if em else config.rl.group_size
        asked.append(config.rl.problems * each)
    if config.recipe == "tora":
        asked.append(config.problems * config.tora.samples)
    return min(samplers(config) * config.sampler.max_rows, max(asked))


def longest_row(model, config, prompt: int) -> int:
    room = config.sampler.max_new_tokens + config.sampler.max_tool_tokens
    return min(model.config.max_seq_len, prompt + room)


def sizes_of(model, bf16: bool, rank: int) -> Sizes:
    device = model.embed.weight.device
    w = model.embed.weight.itemsize
    with autocast(device, bf16):
        c = 2 if torch.is_autocast_enabled(device.type) else w
    if device.type == "cpu":
        cpp = native.serves(model.embed.weight)
        return Sizes(w, c, 4, rank, cpp=cpp, norms=0 if cpp or rank else 4 if w == 4 else 8)
    return Sizes(w, c, c, rank, CHUNK_ON_GPU)


def saved_by_attention(m: ModelConfig, sizes: Sizes) -> float:
    """Bytes a token that one block's attention keeps for the backward pass, its input included."""
    w, c, s = sizes.w, sizes.c, sizes.s
    d, heads, keys = m.d_model, m.n_heads * m.d_head, m.n_kv_heads * m.d_head
    kept = w * d + 4 + c * d  # of RMSNorm its input and one number a position in fp32
    if sizes.cpp:
        return kept + c * (2 * heads + 2 * keys) + 2 * c * sizes.rank  # q, k and v in one; out
    kept += sizes.norms * d
    kept += s * (heads + keys) + s * heads + 4 * m.n_heads  # q and k, rotated; out, and its sums
    if m.qk_norm:  # its input is in the precision of the weights
        kept += 4 * (m.n_heads + m.n_kv_heads) + ((w if c < w else 0) + sizes.norms) * (
            heads + keys
        )
    kept += c * (heads + 2 * keys) if s == c or (m.qk_norm and c == w) else 0  # q, k and v in one
    kept += s * keys + c * heads if s != c else 0  # v and out in the other precision
    return kept + 2 * c * sizes.rank


def saved_by_ff(m: ModelConfig, sizes: Sizes) -> float:
    """Bytes a token that one block's feed-forward layer, or its experts, keep, input included."""
    w, c, d, k = sizes.w, sizes.c, m.d_model, m.n_experts_per_token
    kept = w * d + 4 + sizes.norms * d
    inner = (3 if sizes.cpp else 4) * c  # gate, up, product and, without C++, silu(gate)
    if not m.n_experts:
        return kept + c * d + inner * m.d_ff + 2 * c * sizes.rank
    expert = 2 * c * d + w * d + inner * m.d_expert + 2 * c * sizes.rank
    kept += 4 * d + 4 * m.n_experts + k * (expert + 40)  # the router's input is in fp32
    shared = inner * m.d_shared + (c * d if c < 4 else 0) + 2 * c * sizes.rank
    return kept + (shared if m.d_shared else 0)


def logits_of(m: ModelConfig, sizes: Sizes, tokens: int, entropy: bool) -> float:
    """Bytes of the logits of so many ids and what is made of them; of a chunk, if it is chunked."""
    if m.vocab_size >= CHUNKED_FROM:
        head = 0 if sizes.rank else 4 * m.vocab_size * m.d_model  # the gradient, summed in fp32
        return 3 * 4 * sizes.chunk * m.vocab_size + head
    if sizes.cpp:  # their gradient is written over them
        return sizes.c * tokens * m.vocab_size
    return (6 if entropy else 3) * 4 * tokens * m.vocab_size


def real_peak(model, config, prompt: int, phase: str) -> int:
    """The most that is allocated on a GPU by the largest micro-batch of "imitation" or "RL", run.

    It is run twice: from the second on, all gradients are there. OutOfMemoryError if it cannot.
    """
    device = model.embed.weight.device
    settings = config.rl if phase == "RL" else config.sft
    rows, length = largest_batch(model, config, settings, prompt)
    ids = torch.arange(rows * length, device=device).view(rows, length) % model.config.vocab_size
    mask = torch.arange(length, device=device).expand(rows, length)
    mask = mask >= length - config.sampler.max_new_tokens
    parts = predicted_peak(model, config, prompt)[phase]
    torch.cuda.reset_peak_memory_stats(device)
    held = parts["moments"] + parts.get("reference", 0)
    held = torch.empty(int(held), dtype=torch.uint8, device=device)
    try:
        for _ in range(2):
            routing = Routing() if model.config.n_experts else None
            with autocast(device, settings.bf16):
                entropy = phase == "RL"
                logps, _ = masked_logps(model, ids, mask, entropy=entropy, routing=routing)
            logps.sum().backward()
        return torch.cuda.max_memory_allocated(device)
    finally:
        model.zero_grad()
        del held


def bytes_of(tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors)
