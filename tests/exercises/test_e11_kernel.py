"""The stand-in for Triton's language does what Triton does, and complains where Triton cannot."""

import pytest
import torch

from nanotir.exercises.e11_kernel import INTERPRETED, Pointer, StandIn, in_torch, in_triton
from nanotir.kernels import forward_kernel
from nanotir.logps import token_logps

tl = StandIn(token=3)
NUMBERS = torch.arange(6.0)


def given(V: int = 11, gap: int = 32):
    """(logits, ids, mask, temperature), rows `gap` numbers apart."""
    logits = torch.randn(4, V + gap, generator=torch.Generator().manual_seed(0))[:, :V]
    return logits, torch.tensor([0, 3, V - 1, 5]), torch.tensor([True, True, True, False]), 0.7


def test_the_kernel_gives_pytorchs_log_probs():
    logits, ids, mask, temperature = given()
    found = in_torch(forward_kernel, *given(), block=4)
    exact = token_logps(logits, ids, temperature)
    torch.testing.assert_close(found["logps"], torch.where(mask, exact, 0.0))


def test_triton_gives_the_same():
    if not INTERPRETED:
        pytest.skip("Triton is optional, and on a GPU it runs kernels, not the interpreter")
    torch.testing.assert_close(
        in_triton(forward_kernel, *given()), in_torch(forward_kernel, *given(), block=16)
    )


def test_a_masked_load_reads_nothing_beyond_its_memory():
    at = torch.arange(4) + 4
    loaded = tl.load(Pointer(NUMBERS) + at, mask=at < 6, other=-1.0)
    assert loaded.tolist() == [4.0, 5.0, -1.0, -1.0]


@pytest.mark.parametrize("at", [6, -1])
@pytest.mark.parametrize("use", [tl.load, lambda pointer: tl.store(pointer, 1.0)])
def test_an_address_outside_of_memory_is_an_error(at, use):
    with pytest.raises(IndexError, match=f"address {at} in a memory of 6"):
        use(Pointer(NUMBERS) + at)


@pytest.mark.parametrize("n", [0, 6, 2**21])
def test_the_number_of_lanes_is_a_power_of_2(n):
    with pytest.raises(ValueError, match=f"{n} lanes"):
        tl.arange(0, n)


def test_a_masked_store_leaves_the_rest_alone():
    memory = torch.zeros(4)
    at = torch.arange(4)
    tl.store(Pointer(memory) + at, at + 1.0, mask=at < 2)
    assert memory.tolist() == [1.0, 2.0, 0.0, 0.0]


def test_the_words_beyond_those_of_the_hint_do_what_they_do_in_triton():
    assert tl.cdiv(17, 8) == 3 and list(range(tl.cdiv(16, 8))) == [0, 1]
    assert tl.full([4], 0.5, tl.float32).tolist() == [0.5] * 4
    assert tl.cast(tl.program_id(0), tl.int64).dtype == torch.int64


def test_a_word_that_the_stand_in_lacks_is_named():
    with pytest.raises(AttributeError, match="this stand-in for tl has no dot_scaled"):
        tl.dot_scaled(1, 2)


def test_an_address_of_32_bits_overflows_as_it_does_in_triton():
    far = Pointer(NUMBERS, far=2**30, stride=1)
    token = tl.program_id(0)
    assert tl.load(far + token.to(tl.int64) * 2**30) == 3.0
    with pytest.raises(IndexError):
        tl.load(far + token * 2**30)


def test_the_kernels_file_is_left_as_it_was():
    before = dict(forward_kernel.__globals__)
    in_torch(forward_kernel, *given(), block=4)
    assert forward_kernel.__globals__ == before
