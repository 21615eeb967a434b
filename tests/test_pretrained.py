"""From a Hugging Face folder to a run: train.py --init FOLDER."""

import json

import pytest
import torch
from conftest import small_model
from test_turns import SMOLLM, SPECIAL, folder, folder_of  # noqa: F401

import sample
import train
from nanotir.config import parse
from nanotir.huggingface import add_tags, load_pretrained, save_pretrained
from nanotir.huggingface.folder import read_tokenizer
from nanotir.policy import load_run
from nanotir.sampler import Sampler, SamplerConfig
from nanotir.tools import TOOLS

SHORT = "--device cpu --sft.steps 2 --sft.batch-size 2 --rl.steps 1 --rl.problems 2 "
SHORT += "--rl.group-size 2 --eval.problems 2 --sampler.max-new-tokens 8 --save-every 1 "
SHORT += "--threads 1"  # a worker would import PyTorch first


@pytest.fixture
def pretrained(folder):  # noqa: F811
    """A small model with more rows than its tokenizer has ids."""
    tokenizer = read_tokenizer(folder, 1000)
    model = small_model(len(tokenizer) + 3, token_shifts=0, qk_norm=False)
    save_pretrained(model, tokenizer, folder)
    folder_of(folder, json.loads((folder / "tokenizer_config.json").read_text()), SMOLLM)
    return folder


@pytest.fixture
def problems(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(8)]
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path}"


def run_of(pretrained, problems, tmp_path, *flags):
    data = ["--data", problems, "--eval-data", problems, "--tools", ""]
    out = tmp_path / "run"
    train.main(["--init", str(pretrained), "--out", str(out), *data, *SHORT.split(), *flags])
    return out


def test_new_rows_are_the_mean_of_the_known_ones(pretrained):
    model, tokenizer = load_pretrained(pretrained)
    mean = model.embed.weight[: len(tokenizer)].mean(0)
    model, tagged = add_tags(model, tokenizer, ["python"])
    for tag, id in tagged.tags.items():
        if tag not in SPECIAL:
            assert torch.equal(model.embed.weight[id], mean)


def test_tags_take_the_rows_that_are_left_before_the_model_grows(pretrained):
    model, tokenizer = load_pretrained(pretrained)
    model, tagged = add_tags(model, tokenizer, ["python", "search"])
    assert min(tagged.ids - tokenizer.ids) == len(tokenizer)
    assert model.config.vocab_size == len(model.embed.weight) == len(tagged)


def test_tags_change_no_logit_of_another_id(pretrained):
    model, tokenizer = load_pretrained(pretrained)
    ids = torch.tensor([tokenizer.encode_untrusted("what is 12 + 30")])
    before = model(ids)[..., : len(tokenizer)]
    model, _ = add_tags(model, tokenizer, ["python"])
    torch.testing.assert_close(model(ids)[..., : len(tokenizer)], before)


def test_tied_embeddings_stay_tied(pretrained):
    model, tokenizer = load_pretrained(pretrained)
    model, _ = add_tags(model, tokenizer, ["python"])
    assert model.head.weight is model.embed.weight


def test_a_tagged_model_is_loaded_again_with_its_tags(pretrained, tmp_path):
    model, tokenizer = load_pretrained(pretrained)
    model, tokenizer = add_tags(model, tokenizer, ["python"])
    save_pretrained(model, tokenizer, tmp_path / "again")
    again, loaded = load_pretrained(tmp_path / "again")
    assert loaded.tags == tokenizer.tags
    assert (loaded.turns, loaded.end_ids) == (tokenizer.turns, tokenizer.end_ids)
    assert torch.equal(again.embed.weight, model.embed.weight)


def test_a_run_starts_from_the_weights_of_the_folder(pretrained, problems, tmp_path):
    out = run_of(pretrained, problems, tmp_path, "--sft.steps", "0", "--rl.steps", "0")
    _, trained, tokenizer, _, _ = load_run(out)
    model, _ = add_tags(*load_pretrained(pretrained), TOOLS)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, trained.get_parameter(name))
    assert tokenizer.turns.user.startswith("<|im_start|>system\nYou are small")


def test_a_run_imitates_learns_is_resumed_without_the_folder_and_asked(
    pretrained, problems, tmp_path, capsys
):
    out = run_of(pretrained, problems, tmp_path)
    phases = [json.loads(line)["phase"] for line in open(out / "metrics.jsonl")]
    assert phases == ["sft", "sft", "rl"]
    (pretrained / "model.safetensors").unlink()
    train.main(["--resume", str(out)])
    sample.main(["--run", str(out), "What is 1 + 1?"])
    assert capsys.readouterr().out


def test_untouched_a_model_ends_at_any_of_its_own_ends(pretrained):
    model, tokenizer = load_pretrained(pretrained)
    settings = SamplerConfig(max_new_tokens=100)
    rows = Sampler(model, tokenizer, config=settings).generate(["what is 1?"], n=30)
    last = {row.ids[-1] for row in rows if row.finish_reason == "stop"}
    assert last == tokenizer.end_ids


def test_adapters_on_a_pretrained_model_need_calls_in_plain_text(pretrained, problems, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run_of(pretrained, problems, tmp_path, "--lora", "2")
    assert ended.value.code == 2
    assert not (tmp_path / "run").exists()


def test_a_run_of_adapters_is_resumed_and_asked_with_the_folder(pretrained, problems, tmp_path):
    out = run_of(pretrained, problems, tmp_path, "--lora", "2", "--format", "text")
    saved = torch.load(out / "checkpoint" / "state.pt", weights_only=True)["model"]
    assert {name[-2:] for name in saved} == {".A", ".B"}
    train.main(["--resume", str(out)])
    _, model, _, _, _ = load_run(out)
    base, _ = load_pretrained(pretrained)
    assert torch.equal(model.embed.weight, base.embed.weight)
    assert not torch.equal(
        model.blocks[0].attention.out.weight, base.blocks[0].attention.out.weight
    )


def test_a_run_from_a_pretrained_run_has_the_settings_for_pretrained_models(
    pretrained, problems, tmp_path
):
    out = run_of(pretrained, problems, tmp_path, "--rl.steps", "0")
    flags = ["--init", str(out), "--data", problems, "--eval-data", problems]
    assert not parse(flags).sft.muon
