"""Measurements of speed, one JSON line each.

    python -m nanotir.bench --run runs/tapo-tiny-1 --only rl_step
    python -m nanotir.bench --against ../before    how much faster than another checkout

Figures are medians over rounds on one thread, in wall seconds unless a name says otherwise. What a
trained policy writes decides how long its rollouts take, so it is best to measure a run. Without
--run the newest run in runs/ is taken. If there is none, a policy is trained first (a minute).
"""

from __future__ import annotations

import json
from contextlib import ExitStack

import torch

from nanotir.bench.against import compare
from nanotir.bench.against_transformers import against_transformers
from nanotir.bench.against_trl import against_trl
from nanotir.bench.decoding import decode, rollout_by_workers, shared_prefill, slow_tools
from nanotir.bench.fused import fused_loss
from nanotir.bench.gpu import decode_on_a_gpu
from nanotir.bench.head import head_memory
from nanotir.bench.policy import Policy, cold_start, policy_of
from nanotir.bench.sandbox import python_tool
from nanotir.bench.search import search_tool
from nanotir.bench.shapes import decode_shapes, ragged_rollout
from nanotir.bench.training import rl_step, sft_step
from nanotir.bench.yardsticks import imitation_of_s, imitation_of_smollm2, rl_step_of_t
from nanotir.checks import one_of
from nanotir.commands import Parser, one_line
from nanotir.run_files import latest_run, saved_runs

MEASUREMENTS = {
    "rl_step": rl_step,
    "sft_step": sft_step,
    "rl_step_of_t": rl_step_of_t,
    "imitation_of_s": imitation_of_s,
    "imitation_of_smollm2": imitation_of_smollm2,
    "decode": decode,
    "decode_shapes": decode_shapes,
    "ragged_rollout": ragged_rollout,
    "rollout_by_workers": rollout_by_workers,
    "shared_prefill": shared_prefill,
    "slow_tools": slow_tools,
    "python_tool": python_tool,
    "search_tool": search_tool,
    "head_memory": head_memory,
    "fused_loss": fused_loss,
    "decode_on_a_gpu": decode_on_a_gpu,
    "against_transformers": against_transformers,
    "against_trl": against_trl,
}


def main(arguments=None):
    parser = Parser("python -m nanotir.bench", "Measure speed; one JSON line per measurement.")
    names = ", ".join(MEASUREMENTS)
    parser.add_argument("--only", metavar="NAME", help=f"one measurement instead of all: {names}")
    parser.add_argument(
        "--run", help="run folder of the policy (default: the newest in runs/, or a new cold start)"
    )
    parser.add_argument(
        "--against", metavar="FOLDER", help="another checkout: print its figures relative to these"
    )
    with one_line("bench"):
        options = parser.parse_args(arguments)
        if options.only:
            one_of("measurement", options.only, MEASUREMENTS)
        chosen = [options.only] if options.only else list(MEASUREMENTS)
        if options.against:
            return compare(chosen, options.against, options.run or latest_run())
        torch.set_num_threads(1)
        folder = options.run or (latest_run() if saved_runs() else None)
        policy = policy_of(folder) if folder else cold_start()
        measure(chosen, policy)


def measure(names: list[str], policy: Policy):
    """Make the measurements and print each one as soon as it is done."""
    with ExitStack() as stack:
        for tool in policy.tools:
            stack.enter_context(tool)
        for name in names:
            row = {"name": name}
            for figure, value in MEASUREMENTS[name](policy).items():
                row[figure] = round(value, 5) if isinstance(value, float) else value
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
