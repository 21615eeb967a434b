"""Files of weights: what is written is read, and no header is believed before it is checked."""

import json
import mmap
import os
import time
import tracemalloc

import pytest
import torch
from hf_folders import with_header

from nanotir.huggingface.safetensors import read_safetensors, write_safetensors

TENSORS = {
    "a": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b.weight": torch.randn(7, generator=torch.Generator().manual_seed(1)).bfloat16(),
    "c": torch.tensor(2.5).half(),
    "none": torch.empty(0, 4),
}


def same(read: dict, written: dict) -> bool:
    kinds = [(name, t.dtype, t.shape) for name, t in read.items()]
    return kinds == [(name, t.dtype, t.shape) for name, t in written.items()] and all(
        torch.equal(read[name], written[name]) for name in written
    )


def test_what_is_written_is_read(tmp_path):
    write_safetensors(tmp_path / "x", TENSORS)
    assert same(read_safetensors(tmp_path / "x"), TENSORS)


def test_a_part_of_a_parameter_is_written_as_it_looks(tmp_path):
    whole = torch.nn.Parameter(TENSORS["a"])
    write_safetensors(tmp_path / "x", {"column": whole[:, 1:3], "rows": whole.split([1, 2])[1]})
    read = read_safetensors(tmp_path / "x")
    assert torch.equal(read["column"], whole[:, 1:3]) and torch.equal(read["rows"], whole[1:])


def test_the_safetensors_package_reads_what_is_written_and_writes_what_is_read(tmp_path):
    package = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    write_safetensors(tmp_path / "x", TENSORS)
    assert same(dict(sorted(package.load_file(tmp_path / "x").items())), TENSORS)
    package.save_file(TENSORS, tmp_path / "y", metadata={"format": "pt"})
    assert same(dict(sorted(read_safetensors(tmp_path / "y").items())), TENSORS)


def test_writing_to_a_tensor_does_not_reach_the_file(tmp_path):
    write_safetensors(tmp_path / "x", TENSORS)
    before = (tmp_path / "x").read_bytes()
    read_safetensors(tmp_path / "x")["a"].zero_()
    assert (tmp_path / "x").read_bytes() == before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_memory_is_used_only_for_what_is_looked_at(tmp_path):
    numbers = 2**28  # a gigabyte, which takes no room on the disk
    entry = {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}
    start = with_header(json.dumps({"x": entry}))
    (tmp_path / "x").write_bytes(start)
    os.truncate(tmp_path / "x", len(start) + 4 * numbers)
    before = resident()
    assert read_safetensors(tmp_path / "x")["x"][-1] == 0
    assert resident() - before < 50e6


# Damaged files, and files that lie. Each is 8 bytes of data.


def entry(shape=(2,), offsets=(0, 8), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_of(header, data: int = 8) -> bytes:
    return with_header(header if isinstance(header, str) else json.dumps(header), bytes(data))


DAMAGED = {
    "empty": (b"", "truncated"),
    "shorter than the length of its header": (b"\x01\x00", "truncated"),
    "a header that is cut off": (file_of({"x": entry()})[:20], "truncated"),
    "a header longer than any": (b"\xff" * 8 + bytes(50), "truncated"),
    "data cut off": (file_of({"x": entry()}, 7), "need 8 bytes, but it has 7"),
    "data that belongs to no tensor": (file_of({"x": entry()}, 9), "need 8 bytes"),
    "not JSON": (file_of("{"), "JSONDecodeError"),
    "not text": (b"\x04" + bytes(7) + b"\xff\xfe\xfd\xfc", "cannot be used"),
    "a list": (file_of("[]"), "no JSON object"),
    "deep nesting": (file_of('{"x":' + "[" * 100_000), "RecursionError"),
    "an unknown dtype": (file_of({"x": entry(dtype="F8_E4M3")}), "'x'.*dtype is F8_E4M3"),
    "an entry that is a list": (file_of({"x": [1]}), "'x'"),
    "no shape": (file_of({"x": {"dtype": "F32", "data_offsets": [0, 8]}}), "'x'.*shape"),
    "a shape with a minus": (file_of({"x": entry((-1, -2))}), "'x'.*no sense"),
    "a shape with a fraction": (file_of({"x": entry((2.0,))}), "'x'.*no sense"),
    "a shape of truths": (file_of({"x": entry((True, 2))}), "'x'.*no sense"),
    "a shape of many dimensions": (file_of({"x": entry((1,) * 50_000)}), "'x'.*no sense"),
    "a shape that is too large": (file_of({"x": entry((2**60, 2**60))}), "'x'.*shape"),
    "a number of many digits": (
        file_of('{"x": {"dtype": "F32", "shape": [1' + "0" * 100_000 + "]}}"),
        "digits",
    ),
    "a shape that is too small": (file_of({"x": entry((1,))}), "'x'.*shape"),
    "offsets that are not two": (file_of({"x": entry(offsets=(0, 4, 8))}), "'x'"),
    "offsets turned round": (file_of({"x": entry(offsets=(8, 0))}), "'x'.*shape"),
    "offsets beyond the file": (file_of({"x": entry(offsets=(8, 16))}), "gap at byte 0"),
    "tensors that overlap": (
        file_of({"x": entry(), "y": entry((1,), (4, 8))}),
        "overlap or leave a gap at byte 8",
    ),
    "tensors with a gap": (
        file_of({"x": entry((1,), (0, 4)), "y": entry((1,), (8, 12))}, 12),
        "overlap or leave a gap at byte 4",
    ),
    "one name twice": (
        file_of('{"x": %s, "x": %s}' % ((json.dumps(entry((1,), (0, 4))),) * 2)),
        "need 4 bytes, but it has 8",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_file_is_one_line_that_names_it(what, tmp_path):
    data, message = DAMAGED[what]
    (tmp_path / "model.safetensors").write_bytes(data)
    start = time.process_time()
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"model.safetensors' .*{message}") as error:
        read_safetensors(tmp_path / "model.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert time.process_time() - start < 2 and peak < 50e6


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: None])
def test_what_is_no_file_is_named(make, tmp_path):
    make(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors.*no such file"):
        read_safetensors(tmp_path / "model.safetensors")
