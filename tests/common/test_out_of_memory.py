"""Too little memory is one line that names the settings to change."""

import errno
import os
import resource
import shutil
import subprocess
import sys

import psutil
import pyarrow
import pytest
import torch

from salf.errors import UserError, reading
from salf.memory import shortage
from stages.common.command import exit_code
from tests.conftest import write_params
from tests.engine.models.tiny import save_tiny
from tests.stage_sources import ROOT
from tests.test_chain import Chain, commands, new_chain

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to "
                   "allocate 4000000 bytes. Error code 12 (Cannot allocate memory)")  # fmt: skip


def raised_by(make) -> Exception:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        make()
    return caught.value


def out_of(error: Exception, capsys) -> str:
    def stage(_argv):
        raise error

    stage.__module__ = "stages.finetune.__main__"
    assert exit_code(stage, []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    import stages.finetune.__main__  # noqa: F401 (its name is the stage's)

    write_params(tmp_path, finetune__gradient_checkpointing=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (GPU, "out of GPU memory when 2.00 GiB more were asked for: "),
        (CPU, "out of memory ("),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory ("),
        (RuntimeError("unable to open shared memory object </torch_1> in /dev/shm"), "out of shared memory (/dev/shm"),
    ],
)
def test_a_fault_names_what_ran_out_and_the_settings_that_still_help(error, said, capsys):
    line = out_of(error, capsys)
    assert line.startswith(f"error: {said}")
    change = "raise finetune.accumulate (now 1), set finetune.cache (now auto) to disk or off, "
    assert f": {change}lower finetune.processes (now 1);" in line
    assert "gradient_checkpointing" not in line  # it is on


def test_what_torch_and_arrow_raise_is_known():
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**28, limit[1]))
    try:
        faults = [raised_by(lambda: torch.empty(2**30)), raised_by(lambda: pyarrow.allocate_buffer(2**32))]
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert all(shortage(fault) for fault in faults), faults
    assert shortage(ValueError("out of range")) is None
    with pytest.raises(RuntimeError), reading("model.safetensors"):
        raise faults[0]  # not the file's fault
    with pytest.raises(UserError), reading("model.safetensors"):
        raise ValueError("damaged")


def test_a_stage_that_could_not_load_its_libraries_says_so_first():
    command = f"ulimit -v 600000; exec {sys.executable} -m stages.fit"
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "error: address space is limited to 585 MiB (ulimit -v): allow 1280\n"


LIMITED = """
import resource, sys
from importlib import import_module
import psutil, torch
from stages.common.command import exit_code
margin, stage, *argv = sys.argv[1:]
main = import_module(f"stages.{stage}.__main__").main
most = psutil.Process().memory_info().vms + int(margin) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
sys.exit(exit_code(main, argv))
"""


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    """A chain up to the plan, of a model whose embeddings take 51 MB, and a multiple of that to train."""
    wide = shutil.copytree(hub_folder, tmp_path_factory.mktemp("hub") / "wide")
    save_tiny(wide, vocab_size=400_000, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    chain = new_chain(tmp_path_factory.mktemp("limited"), wide, plan__budget=1.0)
    (chain.root / "data").mkdir()
    (chain.root / "reports").mkdir()
    for name, *argv in commands([]):
        if name != "evaluate":
            chain.stage(name, *argv)
    return chain


@pytest.mark.slow
def test_a_fine_tune_too_large_for_its_address_space_says_in_one_line_what_to_change(chain):
    (argv,) = [argv for stage, *argv in commands(["full"]) if stage == "finetune"]
    words = [sys.executable, "-c", LIMITED, "500", "finetune", *argv]
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=chain.root, env=plain, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: out of memory (address space is limited to ")
    assert " bytes more were asked for: raise finetune.accumulate (now 1), " in line
    assert "estimated need above boundary 0: " in line
    assert not (chain.root / "data/models").exists() or not any((chain.root / "data/models").glob("full*"))


FILL = """
from stages.common.command import exit_code

def main(_):
    with open("/dev/shm/filler", "wb", 0) as file:
        while True:
            file.write(bytes(1 << 16))

raise SystemExit(exit_code(main))
"""


@pytest.mark.slow
def test_full_shared_memory_is_not_taken_for_a_full_disk(tmp_path):
    """In a mount namespace of its own, where a user may have one."""
    small = "mount -t tmpfs -o size=4k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", small], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace here")
    (tmp_path / "fill.py").write_text(FILL, encoding="utf-8")
    words = ["unshare", "-m", "sh", "-c", f"{small} && exec {sys.executable} {tmp_path / 'fill.py'}"]
    plain = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(words, cwd=tmp_path, env=plain, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.splitlines()[-1]
    assert line.startswith("error: out of shared memory (/dev/shm is full): ")
