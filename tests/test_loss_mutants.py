"""Wrong variants of losses.py: each makes one plausible mistake, and the checks must see it."""

import types
from pathlib import Path

import pytest
from loss_checks import check_everything, check_far, check_stopped

from nanotir import losses

CLIP = "-torch.minimum(bounded * t.A, t.ratio.clamp(low, high) * t.A)"
BOUNDS = "low = 1 - options.epsilon\n    high = 1 + options.epsilon_high\n"
SWAPPED_BOUNDS = "low = 1 - options.epsilon_high\n    high = 1 + options.epsilon\n"
KL_DIFFERENCE = "masked(ref_logps.detach() - terms.logps, mask)"
CONSTANTS = (
    "k = torch.where(t.A >= 0, 2.0, 3.0)  # (B, T)\n        c = torch.where(t.A >= 0, 3.0, 2.0)"
)
SWAPPED_CONSTANTS = (
    "k = torch.where(t.A >= 0, 3.0, 2.0)\n        c = torch.where(t.A >= 0, 2.0, 3.0)"
)
SURROGATE = "per_token, low_hit, high_hit = surrogate(terms, options)"
TOKENS = "tokens = mask.sum() if num_active_tokens is None else num_active_tokens"
ROWS = "len(mask) if num_rows is None else num_rows"
KL_ADDED = "per_token + options.beta * kl"
KL_WEIGHTED = f"{KL_ADDED} * (1 if terms.weights is None else terms.weights)"

MUTANTS = {  # name: what is replaced, and by what
    # What must be constant.
    "old log-probs not detached": ("logps - old_logps.detach()", "logps - old_logps"),
    "reference not detached": ("ref_logps.detach() - terms.logps", "ref_logps - terms.logps"),
    "importance weights not detached": ("weights.detach()", "weights"),
    "cispo's ratio not detached": ("t.ratio.detach().clamp(", "t.ratio.clamp("),
    "the KL's weight detached": ("k3 * ratio if", "k3 * ratio.detach() if"),
    "vespo's weight not detached": ("with torch.no_grad():", "with torch.enable_grad():"),
    # The clipped surrogate.
    "the larger of the two surrogates": ("-torch.minimum(bounded", "-torch.maximum(bounded"),
    "only the clipped surrogate": (CLIP, "-t.ratio.clamp(low, high) * t.A"),
    "no clipping": (CLIP, "-bounded * t.A"),
    "the bounds swapped": (BOUNDS, SWAPPED_BOUNDS),
    "epsilon_high ignored": ("if self.epsilon_high is None:", "if True:"),
    "delta ignored": ("if self.delta is None:", "if True:"),
    "delta for every ratio": (
        "t.ratio.clamp(low, high)",
        "bounded.clamp(low, high).clamp(max=1.0 if options.delta < math.inf else 9.9)",
    ),
    "the sign of the policy term": (SURROGATE, f"{SURROGATE}\n    per_token = -per_token"),
    # The KL term.
    "the sign of the KL's difference": (
        KL_DIFFERENCE,
        "masked(terms.logps - ref_logps.detach(), mask)",
    ),
    "k3 without its -1": ("d.exp() - d - 1", "d.exp() - d"),
    "k2 without its half": ("d.square() / 2", "d.square()"),
    "k1 of the wrong sign": ("return -d", "return d"),
    "the KL subtracted": (KL_ADDED, "per_token - options.beta * kl"),
    "the KL multiplied by the importance weights": (KL_ADDED, KL_WEIGHTED),
    "the KL of masked ids": (KL_DIFFERENCE, "(ref_logps.detach() - terms.logps)"),
    # Ratios of rows, and denominators.
    "sequence ratios by the sum": (
        "row_mean(log_ratio, mask).exp()",
        "masked(log_ratio, mask).sum(1, keepdim=True).exp()",
    ),
    "row means over padding too": ("/ mask.sum(1, keepdim=True).clamp(min=1)", "/ mask.shape[1]"),
    "empty rows do not count": (
        ROWS,
        "int(mask.any(1).sum()) if num_rows is None else num_rows",
    ),
    "num_rows ignored": (ROWS, "len(mask)"),
    "the mean over padding too": ("mask.sum() if num_active", "mask.numel() if num_active"),
    "bnpo over padding too": (
        "over_tokens(per_token, mask, mask.sum(),",
        "over_tokens(per_token, mask, mask.numel(),",
    ),
    "num_active_tokens ignored": (TOKENS, "tokens = mask.sum()"),
    "bnpo over the whole step": ("(clipped, over_own_tokens)", "(clipped, over_tokens)"),
    "dr_grpo by the padded length": ("(rows * longest)", "(rows * mask.shape[1])"),
    "luspo as a mean over tokens": (
        "return per_token.sum() / rows\n",
        "return row_mean(per_token, mask).sum() / rows\n",
    ),
    "masked by multiplication": ("return torch.where(mask, x, 0.0)", "return x * mask"),
    # The other surrogates.
    "gmpo clipped on both sides": ("row_mean(one_sided, t.mask)", "row_mean(bounded, t.mask)"),
    "gmpo's bounds on the ratio": (
        "t.log_ratio.clamp(-options.epsilon, options.epsilon_high)",
        "t.log_ratio.clamp(math.log(1 - options.epsilon), math.log(1 + options.epsilon_high))",
    ),
    "sapo's temperatures swapped": ("masked_fill_(t.A > 0, 1.0)", "masked_fill_(t.A < 0, 1.0)"),
    "sapo without its scale": ("(t.ratio - 1)) * 4 / tau", "(t.ratio - 1)) * 4"),
    "vespo by the mean": (
        ".sum(1, keepdim=True).clamp(*limits)",
        ".mean(1, keepdim=True).clamp(*limits)",
    ),
    "vespo's constants swapped": (CONSTANTS, SWAPPED_CONSTANTS),
    "vespo weighted twice": (" and surrogate is not vespo", ""),
    # Entropy.
    "the sign of the entropy bonus": ("loss - options.entropy_coef", "loss + options.entropy_coef"),
    "entropy of masked tokens": ("aggregate(masked(entropy, mask)", "aggregate(entropy"),
    "bnpo's entropy over the whole step": (
        'over = "bnpo" if options.loss_type == "bnpo" else "dapo"',
        'over = "dapo"',
    ),
    "entropy by the loss's denominator": (
        'over = "bnpo" if options.loss_type == "bnpo" else "dapo"',
        "over = options.loss_type",
    ),
    # Ratios far from 1.
    "log-ratios not bounded": (
        "masked(logps - old_logps.detach(), mask).clamp(-LOG_LIMIT, LOG_LIMIT)",
        "masked(logps - old_logps.detach(), mask)",
    ),
    "the KL's difference not bounded": ("d = d.clamp(-LOG_LIMIT, LOG_LIMIT)", ""),
    # What the metrics count as stopped.
    "the lower bound counted for every A": (
        "(t.ratio < low) & (t.A < 0)",
        "(t.ratio < low) & (t.A != 0)",
    ),
    "the upper bound counted for every A": (
        "(t.A > 0) & (t.ratio > min(high, options.delta))",
        "(t.A != 0) & (t.ratio > min(high, options.delta))",
    ),
    "delta not counted": (
        "return loss, low_hit, high_hit | delta_hit",
        "return loss, low_hit, high_hit",
    ),
    "delta counted from the upper bound on": (
        "(t.ratio > max(high, options.delta))",
        "(t.ratio > high)",
    ),
    "the counts swapped": (
        "return loss, low_hit, high_hit | delta_hit",
        "return loss, high_hit | delta_hit, low_hit",
    ),
}
UNSEEN_IN_THE_VALUE = (
    "old log-probs not detached",
    "cispo's ratio not detached",
    "the KL's weight detached",
)
CHECKS = (check_stopped, check_far, check_everything)  # the cheapest first


def mutant_of(name: str):
    """losses.py with one mistake."""
    right, wrong = MUTANTS[name]
    source = Path(losses.__file__).read_text()
    assert source.count(right) == 1, "what the mutant replaces must stand in losses.py exactly once"
    mutant = types.ModuleType("nanotir.losses")
    exec(compile(source.replace(right, wrong), "mutant of losses.py", "exec"), mutant.__dict__)
    return mutant


def fails(check, mutant) -> bool:
    try:
        check(mutant)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("check", CHECKS)
def test_the_real_losses_pass(check):
    check(losses)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_variant_is_caught(name):
    mutant = mutant_of(name)
    assert any(fails(check, mutant) for check in CHECKS)


@pytest.mark.parametrize("name", UNSEEN_IN_THE_VALUE)
def test_a_mistake_that_leaves_the_value_alone_is_seen_in_the_gradient(name):
    with pytest.raises(AssertionError, match="gradient"):
        check_everything(mutant_of(name))
