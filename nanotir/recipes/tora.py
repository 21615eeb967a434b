"""ToRA, a tool-integrated reasoning agent (Gou et al. 2024, arXiv 2309.17452): imitation, then output-space shaping.

    imitate   M = argmin sum over (q, r1 a1 o1 .. rn) of sum_i -log p(r_i a_i | q, r1 .. o_{i-1})       (eq. 4: words r and programs a,
                                                                                                        never the outputs o)
    shape     draw K answers a problem from M; keep the valid and distinct ones
              cut a wrong one after its longest good prefix and let the teacher complete it
              retrain M *from its base* on the corpus and at most 4 such answers a problem

`--teacher.format` chooses what is imitated: tool (interleaved), program (one program, its output is the answer), rationale (words).

The paper next to this file: GPT-4's corpus covers 83% of MATH's training problems, here the teacher covers `tora.covered` of them; K = 64
by nucleus sampling, here `tora.samples` at the sampler's temperature; a 34B model completes wrong answers, here the scripted teacher.
Imitation there: 3 epochs in batches of 128, learning rate 2e-5, linear, 3% warm-up, on LLaMA-2 and CodeLLaMA. The released training
script does learn from tool output, against eq. 4; we follow the paper, and `--sft.observations learned` does as the script.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from nanotir import sft
from nanotir.checkpoint import load_state, write_atomically
from nanotir.demonstrate import act_out, answer_sentence, demonstrate
from nanotir.evaluate import evaluate_run
from nanotir.model import Transformer
from nanotir.rewards import completion, is_correct
from nanotir.sampler import Sampler
from nanotir.trajectory import Span, Trajectory

SETTINGS = {"rl.steps": 0, "teacher.quality": 1.0, "sft.steps": 300}


@dataclass
class ToRAConfig:
    covered: float = 0.83  # share of the problems that the corpus demonstrates; of the others only the answers are known
    samples: int = 8  # answers drawn to each problem for shaping; 0: imitation alone
    keep: int = 4  # of these, how many are learned from at most, a problem
    correct: bool = True  # the teacher completes wrong answers from their longest good prefix
    control: bool = False  # learn from as many copies of demonstrations instead: is it the shaping, or only more data?

    def __post_init__(self):
        if not 0 < self.covered <= 1 or min(self.samples, self.keep) < 0:
            raise ValueError("tora needs covered in (0, 1], samples and keep of at least 0")


def train(run):
    config, tools = run.config, {tool.name: tool for tool in run.tools}
    covered = run.problems[: round(config.tora.covered * len(run.problems))]
    corpus = demonstrate(covered, run.tokenizer, run.format, tools, config.teacher, config.seed)
    sft.train(run, corpus)
    evaluate_run(run, "after_sft")
    if config.tora.samples:
        shaped = remembered(run.out / "shaped.jsonl", lambda: shape(run, tools, corpus))
        if config.tora.control:
            shaped = random.Random(f"control {config.seed}").choices(corpus, k=len(shaped))
        if run.state["phase"] != "retrain":
            run.model.load_state_dict(base(run))
        sft.train(run, corpus + shaped, phase="retrain")


def shape(run, tools, corpus) -> list[Trajectory]:
    """Output-space shaping: what the model said right, in other words than the teacher, and what the teacher made of its mistakes."""
    config = run.config
    sampler = Sampler(run.model, run.tokenizer, run.tools, run.format, config.sampler)
    rows = sampler.generate(
        [problem.question for problem in run.problems], config.tora.samples, config.seed
    )
    grouped = list(
        zip(
            run.problems,
            (rows[i : i + config.tora.samples] for i in range(0, len(rows), config.tora.samples)),
        )
    )
    valid = [[t for t in group if right(t, problem, run.tokenizer)] for problem, group in grouped]
    wrong = [
        (problem, t)
        for (problem, group), good in zip(grouped, valid)
        for t in group
        if t not in good
    ]
    corrected = correct(wrong, run, tools) if config.tora.correct else {}
    kept, known = [], {tuple(t.ids) for t in corpus}
    for (problem, _), good in zip(grouped, valid):
        distinct = list(
            {
                tuple(t.ids): t
                for t in good + corrected.get(problem, [])
                if tuple(t.ids) not in known
            }.values()
        )
        kept += random.Random(f"shape {config.seed} {problem.question}").sample(
            distinct, min(config.tora.keep, len(distinct))
        )
    return kept


def right(trajectory, problem, tokenizer) -> bool:
    return trajectory.finish_reason == "stop" and is_correct(
        completion(trajectory, tokenizer), problem.answer
    )


def correct(wrong, run, tools) -> dict:
    """{problem: its wrong answers, completed by the teacher}. What has no good prefix would be the teacher's own answer: left out."""
    model_answers = act_out(
        [p for p, _ in wrong],
        [list(p.solution) for p, _ in wrong],
        run.tokenizer,
        run.format,
        tools,
    )
    problems, scripts, starts = [], [], []
    for (problem, trajectory), model_answer in zip(wrong, model_answers):
        good = good_calls(trajectory, model_answer)
        if good:
            problems.append(problem)
            scripts.append(
                [*after_calls(problem.solution, good), ("text", answer_sentence(problem.answer))]
            )
            starts.append(trajectory.first(spans_with_calls(trajectory, good), good))
    completed: dict = {}
    for problem, trajectory in zip(
        problems, act_out(problems, scripts, run.tokenizer, run.format, tools, starts)
    ):
        completed.setdefault(problem, []).append(trajectory)
    return completed


def good_calls(trajectory, model_answer) -> int:
    """How many calls, from the first on, brought to light what the teacher's did: the prefix up to there is worth keeping."""
    pairs = zip(trajectory.calls, model_answer.calls)
    outputs = [a.result.ok and a.result.output == b.result.output for a, b in pairs]
    return outputs.index(False) if False in outputs else len(outputs)


def spans_with_calls(trajectory, calls: int) -> int:
    """How many spans end with the output of that many calls."""
    return [i for i, span in enumerate(trajectory.spans, 1) if span.kind == "output"][calls - 1]


def after_calls(solution, calls: int) -> list:
    """The pieces of a solution that follow so many of its calls."""
    return list(solution)[
        [i for i, (kind, _) in enumerate(solution, 1) if kind != "text"][calls - 1] :
    ]


def base(run) -> dict:
    """The weights that the run set out from."""
    model = Transformer(run.config.model, run.config.seed)
    if run.config.init:
        load_state(Path(run.config.init) / "checkpoint", model)
    return model.state_dict()


def remembered(path, make) -> list[Trajectory]:
    """What make() gives, or gave before the run was stopped: by then the model that it came from is gone. Calls are not kept."""
    if not path.exists():
        rows = [json.dumps({**asdict(trajectory), "calls": []}) for trajectory in make()]
        write_atomically(
            path, lambda temporary: temporary.write_text("".join(row + "\n" for row in rows))
        )
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [Trajectory(**{**row, "spans": [Span(**span) for span in row["spans"]]}) for row in rows]
