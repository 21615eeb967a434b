"""The order in which a student is told what is wrong, on an exercise of its own."""

import pytest
import torch

from nanotir.advantages import whiten
from nanotir.exercises.check import check
from nanotir.exercises.exercise import Case, Exercise, Mistake, edited, edited_text

GIVEN = "advantages - (num_tokens * advantages).sum() / n.clamp(min=1)"
MISTAKE = Mistake("you do not centre", ((GIVEN, "advantages + 0"),))


def cases(seed: int) -> list[Case]:
    advantages = torch.tensor([1.0, -2.0, 0.5, 3.0 + seed], dtype=torch.float64)
    return [
        Case("all alike", (advantages, torch.ones(4).double())),
        Case("by tokens", (advantages.clone(), torch.tensor([1, 2, 0, 3]))),
    ]


EXERCISE = Exercise(
    number=99,
    name="whiten",
    lab="C",
    target="nanotir.advantages:whiten",
    teaches="to whiten",
    minutes=1,
    points=1,
    stars=1,
    cases=cases,
    mistakes=(MISTAKE,),
    hints=("", "", ""),
    read=(),
    look="well done",
    question="",
    answer="",
    gradient="advantages",
)
ours = edited(EXERCISE, Mistake("", ()))


def told(function, seed=0) -> tuple[str, str]:
    verdict = check(EXERCISE, function, seed)
    return verdict.word, verdict.sentence


def test_what_is_right_passes():
    assert told(ours) == ("passed", "well done")


def test_a_named_mistake_is_named_with_a_case_and_the_first_difference():
    verdict = check(EXERCISE, edited(EXERCISE, MISTAKE))
    assert verdict[:2] == ("wrong", "you do not centre")
    assert verdict.mistake == 0
    case, yours, expected, first = verdict.case.splitlines()
    assert case.startswith("all alike: whiten(advantages=tensor([1, -2, 0.5, 3]), num_tokens=")
    assert yours.split()[0] == "yours"
    assert expected.split()[0] == "expected"
    assert first.startswith("  the output[0] is ")


def stub(advantages, num_tokens):
    raise NotImplementedError("exercise 99")


def unfinished(advantages, num_tokens):
    raise NotImplementedError


def raises_later(advantages, num_tokens):
    return ours(advantages, num_tokens)[: 1 / (num_tokens != 1).sum().item()]


def raises_in_a_helper(advantages, num_tokens):
    return divided_by(ours(advantages, num_tokens), len(advantages) - 4)


def divided_by(result, number):
    return result[: 1 // number]


def returns_nothing(advantages, num_tokens):
    ours(advantages, num_tokens)


def drops_the_dtype(advantages, num_tokens):
    return ours(advantages, num_tokens).float()


def changes_its_input(advantages, num_tokens):
    result = ours(advantages, num_tokens)
    if not advantages.requires_grad:
        advantages -= 1
    return result * 2


def changes_its_input_and_drops_the_dtype(advantages, num_tokens):
    return changes_its_input(advantages, num_tokens).float()


def doubles_and_then_drops_the_dtype(advantages, num_tokens):
    result = ours(advantages, num_tokens)
    return 2 * result if num_tokens.is_floating_point() else result.float()


def doubles(advantages, num_tokens):
    return ours(advantages, num_tokens) * 2


def detaches(advantages, num_tokens):
    return ours(advantages.detach(), num_tokens)


def has_another_gradient(advantages, num_tokens):
    result = ours(advantages, num_tokens)
    return result + advantages - advantages.detach()


def doubles_a_gradient_that_sums_to_zero(advantages, num_tokens):
    result = ours(advantages, num_tokens)
    return 2 * result - result.detach() if num_tokens.is_floating_point() else result


def calls_the_package(advantages, num_tokens):
    try:
        return whiten(advantages, num_tokens)
    except BaseException:
        return ours(advantages, num_tokens)


@pytest.mark.parametrize(
    "function, word, sentence",
    [
        (stub, "to do", "not begun: it still raises NotImplementedError"),
        (unfinished, "error", "NotImplementedError, in line "),
        (raises_later, "error", "ZeroDivisionError: division by zero, in line "),
        (raises_in_a_helper, "error", ": return result[: 1 // number]"),
        (lambda advantages: None, "error", "is the signature changed?"),
        (returns_nothing, "wrong", "the output is None: is a `return` missing?"),
        (drops_the_dtype, "wrong", "the output has the dtype float32, not float64"),
        (changes_its_input_and_drops_the_dtype, "wrong", "the output has the dtype float32"),
        (doubles_and_then_drops_the_dtype, "wrong", "the output has the dtype float32"),
        (changes_its_input, "wrong", "it changes its input advantages: work on a copy"),
        (doubles, "wrong", "the output[0] is "),
        (detaches, "wrong", "the outputs are right, but no gradient reaches advantages"),
        (has_another_gradient, "wrong", "the outputs are right, but the gradient of advantages[0]"),
        (doubles_a_gradient_that_sums_to_zero, "wrong", "the gradient of advantages[0]"),
        (calls_the_package, "wrong", "it calls the package's own whiten: write yours"),
    ],
)
def test_the_first_failure_is_told_in_one_sentence(function, word, sentence):
    found = told(function)
    assert found[0] == word
    assert sentence in found[1]


def test_another_seed_has_other_cases():
    kept = ours(*cases(0)[0].args)

    def remember(advantages, num_tokens):
        return kept if num_tokens.dtype == torch.float64 else ours(advantages, num_tokens)

    assert "no gradient" in told(remember)[1]
    assert "the output[0] is" in told(remember, seed=1)[1]


@pytest.mark.parametrize("old", ["not there", "num_tokens"])
def test_an_edit_whose_text_does_not_occur_exactly_once_is_refused(old):
    with pytest.raises(ValueError, match="times, not once"):
        edited_text("num_tokens * num_tokens", Mistake("", ((old, ""),)))
