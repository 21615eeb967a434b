"""The turns of a conversation: what a model expects before a question, and how it ends an answer.

A model that nanotir trains from scratch has one id for each. A pretrained model has turns of its
own, three strings. They are read from the chat template of its folder, which is never run.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

PAD, END, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"

# What ChatML says before the user speaks, where the template spells it out: no other can be read.
SYSTEM = re.compile(r"(<\|im_start\|>system)(?:\n|\\n)([^'\"<]*)(<\|im_end\|>)(?:\n|\\n)")


@dataclass
class Turns:
    """Strings, special tokens included, that stand around a question and after an answer."""

    user: str = USER
    assistant: str = ASSISTANT
    end: str = END


CHATML = Turns("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")
LLAMA = Turns(
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
)
MISTRAL = Turns("<s>[INST] ", " [/INST]", "</s>")
FAMILIES = {"<|im_start|>": CHATML, "<|start_header_id|>": LLAMA, "[INST]": MISTRAL}


def read_turns(folder: str | Path) -> Turns:
    """The turns of a Hugging Face folder. ValueError for a template of no family known here.

    The folder of a base model has no template. Then a new line separates question and answer, and
    its eos_token ends the answer.
    """
    folder = Path(folder)
    if own := read_json(folder / "turns.json"):  # saved by nanotir
        return Turns(*own["turns"])
    settings = read_json(folder / "tokenizer_config.json")
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # of several, by name
        template = {row["name"]: row["template"] for row in template}["default"]
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8") or template
    if not isinstance(template, str):
        raise ValueError("its chat_template is no text")
    if not template:
        return Turns("", "\n", token_text(settings.get("eos_token")) or "")
    if template == template_of(Turns()):
        return Turns()
    for sign, turns in FAMILIES.items():
        if sign in template:
            return with_system(turns, template)
    known = ", ".join(FAMILIES)
    raise ValueError(f"its chat template has turns of another kind than {known}")


def with_system(turns: Turns, template: str) -> Turns:
    """ChatML's turns after the system's words that the template has by default, if it has any."""
    if found := SYSTEM.search(template):
        start, words, end = found.groups()
        words = words.encode("ascii", "backslashreplace").decode("unicode-escape")  # as Jinja does
        return Turns(f"{start}\n{words}{end}\n{turns.user}", turns.assistant, turns.end)
    return turns


def template_of(turns: Turns) -> str:
    """A chat template that writes these turns, for other programs to run."""
    user, assistant, end = (json.dumps(text) for text in (turns.user, turns.assistant, turns.end))
    question = f"{{{{ {user} + message['content'] + {assistant} }}}}"
    answer = f"{{{{ message['content'] + {end} }}}}"
    body = f"{{% if message['role'] == 'user' %}}{question}{{% else %}}{answer}{{% endif %}}"
    return f"{{% for message in messages %}}{body}{{% endfor %}}"


def end_tokens(folder: str | Path, vocabulary: dict[str, int]) -> set[int]:
    """All ids at which the model of a Hugging Face folder ends its answer, by its own settings."""
    folder = Path(folder)
    ends = set()
    for name in ("config.json", "generation_config.json"):
        found = read_json(folder / name).get("eos_token_id")
        ends |= set(found if isinstance(found, list) else [found])
    named = token_text(read_json(folder / "tokenizer_config.json").get("eos_token"))
    ends.add(vocabulary.get(named))
    return ends & set(vocabulary.values())  # an id of no token is never written


def token_text(token) -> str | None:
    """A special token as settings have it: a string, or a dict with its content."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str | None):
        raise ValueError(f"its eos_token is no text: {text!r:.60}")
    return text


def read_json(path: Path) -> dict:
    """An object of settings that may be missing. ValueError if it is damaged."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"'{path}' is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' is not a JSON object")
    return found
