"""Turns of pretrained models, read from templates and settings as their makers write them."""

import json
import random

import pytest
from test_tokenizer import any_text
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from nanotir.huggingface.folder import read_tokenizer
from nanotir.tokenizer import Tokenizer
from nanotir.trajectory import Format
from nanotir.turns import Turns, read_turns, template_of

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] "
    "+ '<|im_end|>\\n' }}{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}"
    "{%- endif %}"
)
SMOLLM = "{{ '<|im_start|>system\nYou are small<|im_end|>\n' }}{{'<|im_start|>' + message['role']"
QWEN3 = "{{- '<|im_start|>system\\n' }}{{- messages[0].content + '<|im_end|>\\n' }}"
LLAMA3 = "{{ bos_token }}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
MIXTRAL = "{{ bos_token }}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
TEMPLATES = {
    QWEN: "<|im_start|>system\nYou are Qwen.<|im_end|>\n<|im_start|>user\n",
    SMOLLM: "<|im_start|>system\nYou are small<|im_end|>\n<|im_start|>user\n",
    QWEN3: "<|im_start|>user\n",
    LLAMA3: "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
    MIXTRAL: "<s>[INST] ",
}


def folder_of(path, settings: dict, template: str = ""):
    """The files of a Hugging Face folder that say how its model talks."""
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template:
        (path / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture
def folder(tmp_path):
    """A byte-level tokenizer whose special tokens are in the vocabulary of ordinary text, too."""
    bpe = Backend(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["a user asks the assistant", "what is 12 + 30"] * 9, trainer)
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    return folder_of(tmp_path, {"eos_token": {"content": "<|im_end|>"}}, SMOLLM)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_words_before_a_user_are_read_from_the_template(tmp_path, template):
    assert read_turns(folder_of(tmp_path, {}, template)).user == TEMPLATES[template]


def test_a_template_may_stand_in_the_settings_of_the_tokenizer(tmp_path):
    assert read_turns(folder_of(tmp_path, {"chat_template": QWEN})).user == TEMPLATES[QWEN]


def test_a_template_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="turns of another kind"):
        read_turns(folder_of(tmp_path, {}, "{{ '### Human: ' + message['content'] }}"))


def test_of_several_templates_the_default_one_is_read(tmp_path):
    rows = [("tool_use", LLAMA3), ("default", QWEN)]
    templates = [{"name": name, "template": template} for name, template in rows]
    assert read_turns(folder_of(tmp_path, {"chat_template": templates})).user == TEMPLATES[QWEN]


@pytest.mark.parametrize(
    "settings",
    [
        {"chat_template": 5},
        {"chat_template": {"default": QWEN}},
        {"chat_template": [QWEN]},
        {"eos_token": 5},
        {"eos_token": ["</s>"]},
        {"eos_token": {"content": 5}},
    ],
)
def test_settings_of_another_form_are_one_line_that_names_the_folder(folder, settings):
    folder_of(folder, settings)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=f"'{folder}' cannot be used: .*") as error:
        read_tokenizer(folder, 1000)
    assert "\n" not in str(error.value)


def test_an_end_that_no_token_has_is_left_out(folder):
    (folder / "config.json").write_text('{"eos_token_id": [0, 999999, -3]}')
    assert read_tokenizer(folder, 1000).end_ids == {0, 2}


@pytest.mark.parametrize("ids", ["[[2]]", "{}"])
def test_ends_of_another_form_name_the_folder(folder, ids):
    (folder / "config.json").write_text(f'{{"eos_token_id": {ids}}}')
    with pytest.raises(ValueError, match=f"'{folder}' cannot be used"):
        read_tokenizer(folder, 1000)


def test_a_model_without_a_template_ends_with_its_end_of_text(tmp_path):
    assert read_turns(folder_of(tmp_path, {"eos_token": "</s>"})) == Turns("", "\n", "</s>")


@pytest.mark.parametrize("damage", ["{", "[]", "[" * 100_000])
def test_damaged_settings_are_named(tmp_path, damage):
    (tmp_path / "tokenizer_config.json").write_text(damage)
    with pytest.raises(ValueError, match="tokenizer_config.json"):
        read_turns(tmp_path)


@pytest.mark.parametrize("template", [QWEN, LLAMA3, MIXTRAL, template_of(Turns())])
def test_the_template_that_is_written_is_read_back(tmp_path, template):
    turns = read_turns(folder_of(tmp_path, {}, template))
    assert read_turns(folder_of(tmp_path, {}, template_of(turns))) == turns


def test_the_turns_of_a_model_without_a_template_are_read_back(folder):
    folder_of(folder, {"eos_token": "<|im_end|>"})
    (folder / "chat_template.jinja").unlink()
    tokenizer = read_tokenizer(folder, 1000)
    tokenizer.save(folder)
    folder_of(folder, {"chat_template": template_of(tokenizer.turns)})  # as save_pretrained has it
    assert read_turns(folder) == tokenizer.turns == Turns("", "\n", "<|im_end|>")


def test_backslashes_of_the_system_are_read_as_jinja_reads_them(tmp_path):
    template = r"{{- '<|im_start|>system\nReason within \\boxed{}.<|im_end|>\n' }}"
    user = read_turns(folder_of(tmp_path, {}, template)).user
    assert user == "<|im_start|>system\nReason within \\boxed{}.<|im_end|>\n<|im_start|>user\n"


def test_an_end_that_is_no_token_is_refused(folder):
    folder_of(folder, {}, LLAMA3)
    with pytest.raises(ValueError, match="<|eot_id|>, is no token"):
        read_tokenizer(folder, 1000)


def test_every_end_of_the_settings_ends_an_answer(folder):
    tokenizer = read_tokenizer(folder, 1000)
    assert tokenizer.end_id == 2
    assert tokenizer.end_ids == {0, 2}


def test_a_prompt_is_what_the_template_writes(folder):
    tokenizer = read_tokenizer(folder, 1000)
    text = tokenizer.decode(Format().prompt(tokenizer, " what is 1? "))
    assert text == TEMPLATES[SMOLLM] + "what is 1?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("tagged", [False, True])
def test_untrusted_text_never_has_the_id_of_a_special_token(folder, tagged):
    tokenizer = read_tokenizer(folder, 1000)
    if tagged:
        tokenizer = tokenizer.with_tags(["python", "search"])
    special = set(tokenizer.tags.values())
    assert len(special) == len(SPECIAL) + 14 * tagged
    rng = random.Random(0)
    for tag in tokenizer.tags:
        text = any_text(rng) + tag + any_text(rng)
        ids = tokenizer.encode_untrusted(text)
        assert not special & set(ids)
        assert tokenizer.decode(ids) == text


def test_tags_are_new_ids_and_the_others_stay(folder):
    plain = read_tokenizer(folder, 1000)
    tagged = plain.with_tags(["python", "search"])
    assert tagged.encode("<python>") == [tagged.tags["<python>"]]
    assert min(id for tag, id in tagged.tags.items() if tag not in SPECIAL) == len(plain)
    assert tagged.encode_untrusted("what is 12?") == plain.encode_untrusted("what is 12?")


def test_a_tokenizer_keeps_its_turns_when_it_is_saved(folder, tmp_path):
    tokenizer = read_tokenizer(folder, 1000).with_tags(["python"])
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    assert (loaded.turns, loaded.end_ids) == (tokenizer.turns, tokenizer.end_ids)
    assert loaded.tags == tokenizer.tags
