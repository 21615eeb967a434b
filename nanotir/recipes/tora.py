"""ToRA, a tool-integrated reasoning agent (Gou et al. 2024, arXiv 2309.17452).

    imitate   M = argmin sum over (q, r1 a1 o1 .. rn) of sum_i -log p(r_i a_i | q, r1 .. o_{i-1})
              (eq. 4: words r and programs a, never the outputs o)
    shape     draw K answers a problem from M; keep the valid and distinct ones
              cut a wrong one after its longest good prefix, which may end inside a program, and
              let the teacher complete it
              retrain M *from its base* on the corpus and at most 4 such answers a problem

`--teacher.format` chooses what is imitated: tool (interleaved), program (one program, whose output
is the answer) or rationale (words).

The paper: GPT-4's corpus covers 83% of MATH's training problems (here the teacher covers
`tora.covered`); K = 64 by nucleus sampling (`tora.samples`, at the sampler's temperature); a 34B
model completes wrong answers (here the scripted teacher); 3 epochs in batches of 128, learning rate
2e-5, linear, 3% warm-up, on LLaMA-2 and CodeLLaMA. The released training script does learn from
tool output, against eq. 4. We follow the paper; `--sft.observations learned` follows the script.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from nanotir import sft
from nanotir.checks import Part, Whole, check_settings
from nanotir.demonstrate import act_out, answer_sentence, demonstrate, ways_to_write, within
from nanotir.lora import load_weights, weights_of
from nanotir.problems import Problem
from nanotir.processes import is_main, once
from nanotir.rewards import is_correct
from nanotir.rl import make_sampler
from nanotir.room import demonstrations_with_room
from nanotir.run_files import reading, write_lines
from nanotir.trajectory import Span, Trajectory

SETTINGS = {"rl.steps": 0, "teacher.quality": 1.0, "sft.steps": 300}


@dataclass
class ToRAConfig:
    covered: Part = 0.83  # share of the problems that the corpus demonstrates
    samples: Whole = 8  # answers drawn to each problem for shaping; 0: imitation alone
    keep: Whole = 4  # of these, how many are learned from at most, a problem
    correct: bool = True  # the teacher completes wrong answers from their longest good prefix

    def __post_init__(self):
        check_settings(self, "tora")


def demonstrations(run) -> list[Trajectory]:
    """The corpus. It is made before the weights change, so here they are kept as the base."""
    run.state.setdefault("base", copy.deepcopy(weights_of(run.model)))
    config = run.config
    covered = run.problems[: round(config.tora.covered * len(run.problems))]
    if not covered:
        few = f"--tora.covered {config.tora.covered} of {len(run.problems)} problems"
        raise ValueError(f"{few} leaves none to imitate: more of either are needed")
    given = (run.tokenizer, run.format, run.tools_by_name, config.teacher, config.seed)
    return demonstrate(covered, *given)


def improve(run):
    """Output-space shaping, and imitation once more from the base."""
    if not run.config.tora.samples or run.is_done("retrain"):
        return
    corpus = run.demonstrations or demonstrations_with_room(run, demonstrations(run))
    shaped = remembered(run.out / "shaped.jsonl", lambda: shape(run, corpus))
    retrain(run, corpus + shaped)


def retrain(run, shown: list[Trajectory]):
    if run.state["phase"] != "retrain":
        load_weights(run.model, run.state["base"])
        run.state.pop("peak", None)  # that held-out accuracy falls now is no collapse
        run.state.pop("warned", None)
    sft.train(run, shown, phase="retrain")


def shape(run, corpus: list[Trajectory]) -> list[Trajectory]:
    """What the model said right, in other words than the teacher, and its completed mistakes."""
    config = run.config.tora
    n = config.samples
    questions = [problem.question for problem in run.problems]
    rows = make_sampler(run).generate(questions, n, run.config.seed)
    valid: dict[Problem, list] = {problem: [] for problem in run.problems}
    wrong = []
    for i, trajectory in enumerate(rows):
        problem = run.problems[i // n]
        if is_valid(trajectory, problem, run.tokenizer):
            valid[problem].append(trajectory)
        else:
            wrong.append((problem, trajectory))
    corrected = correct(wrong, run) if config.correct else {}

    # At most `keep` distinct answers a problem, none of which the corpus has. Completed ones may be
    # longer than a row.
    limit = run.config.model.max_seq_len
    known = {tuple(t.ids) for t in corpus}
    kept = []
    for problem, good in valid.items():
        distinct = {tuple(t.ids): t for t in good + corrected.get(problem, [])}
        new = [t for ids, t in distinct.items() if ids not in known and len(ids) <= limit]
        rng = random.Random(f"shape {run.config.seed} {problem.question}")
        kept += rng.sample(new, min(config.keep, len(new)))
    return kept


def is_valid(trajectory: Trajectory, problem: Problem, tokenizer) -> bool:
    stopped = trajectory.finish_reason == "stop"
    return stopped and is_correct(trajectory.completion(tokenizer), problem.answer)


def correct(wrong: list[tuple], run) -> dict[Problem, list[Trajectory]]:
    """{problem: its wrong answers, completed by the teacher}.

    An answer without a good prefix of its own is left out: the rest would be the teacher's.
    """
    given = (run.tokenizer, run.format, run.tools_by_name)
    wrong_problems = [problem for problem, _ in wrong]
    solutions = [within(problem.solution, run.tools_by_name) for problem in wrong_problems]
    model_answers = act_out(wrong_problems, solutions, *given)
    problems, scripts, starts = [], [], []
    for (problem, trajectory), model_answer in zip(wrong, model_answers):
        good = good_calls(trajectory, model_answer)
        if found := good_prefix(problem, trajectory, good, run):
            start, rest = found
            if not good and start.ids == model_answer.ids[: len(start.ids)]:
                continue
            problems.append(problem)
            scripts.append([*rest, ("text", answer_sentence(problem.answer))])
            starts.append(start)
    completed: dict[Problem, list] = {}
    for problem, trajectory in zip(problems, act_out(problems, scripts, *given, starts)):
        completed.setdefault(problem, []).append(trajectory)
    return completed


def good_prefix(problem: Problem, trajectory: Trajectory, good: int, run) -> tuple | None:
    """(the good prefix of a wrong answer, the pieces that follow it); None if nothing is good.

    `good` calls are, and the ids of the next program, as far as they begin one of the teacher's. It
    is written anew with the same ids, and then goes on as the teacher's.
    """
    rest = after_calls(within(problem.solution, run.tools_by_name), good)
    calls = [i for i, span in enumerate(trajectory.spans) if span.kind in run.tools_by_name]
    kind, code = next((piece for piece in rest if piece[0] != "text"), ("", ""))
    if kind == "python" and len(calls) > good:
        i = calls[good]
        if program := begun(trajectory, trajectory.spans[i], code, run):
            return trajectory.first(i, good), [(kind, program), *after_calls(rest, 1)]
    return (trajectory.first(spans_with_calls(trajectory, good), good), rest) if good else None


def begun(trajectory: Trajectory, span: Span, code: str, run) -> str:
    """The way to write the teacher's program that the span begins the most of, or ""."""
    ids = trajectory.ids[span.start : span.end]
    lengths = {}
    for program in ways_to_write(code, run.config.teacher.styles):
        block = run.format.trajectory(run.tokenizer, "", [("python", program)], end=False)
        same = [a == b for a, b in zip(ids, block.ids[block.spans[-1].start :])]
        lengths[program] = same.index(False) if False in same else len(same)
    best = max(lengths, key=lengths.get)
    opener, _ = run.format.delimiters("python")
    return best if len(run.tokenizer.decode(ids[: lengths[best]])) > len(opener) else ""


def good_calls(trajectory: Trajectory, model_answer: Trajectory) -> int:
    """How many calls, from the first on, had the same output as the teacher's."""
    pairs = zip(trajectory.calls, model_answer.calls)
    same = [a.result.ok and a.result.output == b.result.output for a, b in pairs]
    return same.index(False) if False in same else len(same)


def spans_with_calls(trajectory: Trajectory, calls: int) -> int:
    """How many spans end with the output of that many calls."""
    ends = [i for i, span in enumerate(trajectory.spans, 1) if span.kind == "output"]
    return ends[calls - 1]


def after_calls(solution, calls: int) -> list:
    """The pieces of a solution that follow that many of its calls."""
    ends = [0, *(i for i, (kind, _) in enumerate(solution, 1) if kind != "text")]
    return list(solution)[ends[calls] :]


def remembered(path: Path, make) -> list[Trajectory]:
    """What make() gives, or gave before the run was stopped. Calls are not kept."""
    if not once(path.exists):
        made = make()
        if is_main():
            write_lines(path, [{**asdict(trajectory), "calls": []} for trajectory in made])
    with reading(path):
        rows = [json.loads(line) for line in once(path.read_text).splitlines()]
        return [Trajectory(**row | {"spans": [Span(**s) for s in row["spans"]]}) for row in rows]
