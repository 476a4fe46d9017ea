"""What the machine says of itself."""

import psutil
import pytest
import torch

from salf.engine.runtime import Runtime, find_runtime
from salf.memory import free_memory_bytes
from salf.settings import Device


def test_free_memory_is_the_containers_where_that_is_less(tmp_path):
    assert 0 < free_memory_bytes(tmp_path) <= psutil.virtual_memory().total  # no control group here
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert free_memory_bytes(tmp_path) == 600  # of the file cache, what was not used lately can be had
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory_bytes(tmp_path) > 2**20


@pytest.mark.parametrize(
    ("tiles", "products", "dtype", "named"),
    [
        (True, False, torch.bfloat16, "has AMX"),
        (False, True, torch.bfloat16, "has AVX512_BF16"),
        (False, False, torch.float32, "no bfloat16"),
    ],
)
def test_bfloat16_is_chosen_only_where_the_processor_computes_it(monkeypatch, tiles, products, dtype, named):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: products)
    chosen = find_runtime(Device(kind="cpu", dtype="auto"))
    assert chosen.dtype is dtype
    assert named in chosen.reason
    assert find_runtime(Device(kind="cpu", dtype="float32")).dtype is torch.float32  # what is asked for is taken


def test_frozen_linear_maps_hold_what_autocast_would_make_of_them_for_a_while():
    parts = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.Embedding(4, 8)])
    trained, whole = parts[1].weight, {name: value.clone() for name, value in parts.state_dict().items()}
    runtime, given = Runtime(torch.device("cpu"), torch.bfloat16, ""), torch.randn(3, 8, requires_grad=True)

    def through():
        with runtime.autocast():
            output = parts[1](parts[0](given))
        gradients = torch.autograd.grad(output.float().square().sum(), [given, trained])
        return [output, *gradients]

    before = through()
    with runtime.rounded(parts, [trained]):
        assert [part.weight.dtype for part in parts] == [torch.bfloat16, torch.float32, torch.float32]
        during = through()
    assert all(torch.equal(one, other) for one, other in zip(before, during, strict=True))
    assert all(torch.equal(value, whole[name]) for name, value in parts.state_dict().items())
    with Runtime(torch.device("cpu"), torch.float32, "").rounded(parts, []):
        assert parts[0].weight.dtype is torch.float32
