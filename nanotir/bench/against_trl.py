"""An RL step beside TRL's GRPOTrainer: the same weights, steps in turn.

It is not among the project's packages: pip install transformers trl datasets. Processor time on one
thread, but of the step with a tool, which mostly waits, time by the clock.
"""

from __future__ import annotations

import importlib.util
import time

from nanotir.bench.against_transformers import ROUNDS, named, twin
from nanotir.bench.decoding import Sleeper
from nanotir.bench.policy import Policy
from nanotir.bench.yardsticks import NEW_IDS, rl_step, shape
from nanotir.demonstrate import corpus
from nanotir.tokenizer import Tokenizer
from nanotir.tools import TOOLS

TEMPLATE = """{% for m in messages %}{{ m['content'] }}
{% for c in m.tool_calls or [] %}{{ c.function }}{% endfor %}{% endfor %}"""
CALLS = [{"type": "function", "function": {"name": "wait", "arguments": {}}}]


def against_trl(policy: Policy) -> dict:
    """The RL step of `rl_step_of_t`, without tools and with one of 50 ms in every answer.

    TRL trains in batches of 32 rows, or of 64.
    """
    if not importlib.util.find_spec("trl"):
        return {"skipped": "needs trl"}
    tokenizer = Tokenizer.train(corpus(policy.problems), 512, tools=TOOLS)
    call = tuple(tokenizer.encode("<python>1</python>"))
    figures = {}
    for name, *case in (("32", 32, ()), ("64", 64, ()), ("32_with_tool", 32, call)):
        figures |= named(f"batches_of_{name}", iter(steps(tokenizer, policy.questions(32), *case)))
    return figures


def steps(tokenizer: Tokenizer, questions: list[str], batch: int, call: tuple) -> list[dict]:
    """Seconds of RL steps by both, in turn: ours are made whenever one of TRL's has ended.

    Every answer begins with `call`, if there is one, which costs neither of them anything.
    """
    from transformers import TrainerCallback

    model = shape("T", len(tokenizer))
    kind, clock = ("seconds", time.perf_counter) if call else ("cpu_seconds", time.process_time)
    seen = []
    with Sleeper(0.05) as tool:
        tools = [tool] if call else []
        own = {"ours": rl_step(model, tokenizer, tools)}
        own["ours_compiled"] = rl_step(model, tokenizer, tools, compiled=True)

        class InTurn(TrainerCallback):
            def on_step_begin(self, *given, **named):
                self.begun = clock()

            def on_step_end(self, *given, **named):
                row = {"peer": clock() - self.begun}
                for who, step in own.items():
                    row[who] = step(questions, len(seen), call)[kind]
                seen.append(row)

        trainer_of(model, tokenizer, questions, batch, call, InTurn()).train()
    return seen


def trainer_of(model, tokenizer: Tokenizer, questions: list[str], batch: int, call, callback):
    """TRL's trainer for ROUNDS + 1 steps of 32 questions with 8 answers of 115 ids each."""
    from datasets import Dataset

    peer, words = twin(model, tokenizer)
    words.chat_template = TEMPLATE
    words.response_template = "that of parse_response"
    room = len(call) + len(words("1\n")["input_ids"]) if call else 0
    asked = [{"prompt": [{"role": "user", "content": question}]} for question in questions]
    return trainer_class(call)(
        peer,
        reward_funcs=lambda completions, **given: [float(i % 2) for i in range(len(completions))],
        args=settings_of(batch, room),
        train_dataset=Dataset.from_list(asked),
        processing_class=words,
        tools=[wait] if call else None,
        callbacks=[callback],
    )


def wait() -> str:
    """Wait."""
    time.sleep(0.05)
    return "1"


def trainer_class(call: tuple):
    """GRPOTrainer; with `call`, these ids are the first turn of every answer."""
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    def parse_response(words, ids, **given) -> dict:
        said = {"role": "assistant", "content": words.decode(ids)}
        return said | ({"tool_calls": CALLS} if tuple(ids) == call else {})

    class Calling(GRPOTrainer):
        def _generate_single_turn(self, prompt_ids, images, fields, num_generations, **given):
            if num_generations > 1:  # 1 after a call
                return [list(call) for _ in prompt_ids], None
            return super()._generate_single_turn(prompt_ids, images, fields, 1, **given)

    if not call:
        return GRPOTrainer
    grpo_trainer.parse_response = parse_response
    return Calling


def settings_of(batch: int, room: int):
    """One update a step by AdamW, as `rl_step_of_t` makes it. `room` is for call and output."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir="runs/trl",
        max_steps=ROUNDS + 1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=256 // batch,
        num_generations=8,
        max_completion_length=NEW_IDS + room,
        generation_kwargs={"min_new_tokens": NEW_IDS, "max_new_tokens": NEW_IDS},
        learning_rate=1e-12,  # the weights stay
        shuffle_dataset=False,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
