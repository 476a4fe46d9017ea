"""Every stage of the real chain: killed at random moments, or out of disk, it loses nothing and makes nothing wrong."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
from importlib import import_module
from pathlib import Path

import pytest

from stages.common.command import exit_code
from tests.test_chain import Chain, commands, new_chain

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

METHODS = ["full", "salf", "lora", "freeze-1+lora", "lisa"]
OUTPUTS = {
    "--out",
    "--pilot",
    "--law",
    "--gains",
    "--measured",
    "--metrics",
    "--comparison",
    "--predictions",
    "--curves",
}
STAGES = {
    " ".join([name, *(argv[argv.index("--method") + 1 :][:1] if "--method" in argv else [])]): (name, argv)
    for name, *argv in commands(METHODS)
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory, hub_folder) -> Chain:
    changes = {
        "compare__methods": METHODS,
        "finetune__checkpoint_minutes": 0,
        "finetune__cache": "disk",
        "signals__kinds": ["block-influence", "spectrum"],
    }
    return new_chain(tmp_path_factory.mktemp("interrupted"), hub_folder, **changes).run(METHODS)


@pytest.fixture(params=STAGES)
def stage(request, chain, monkeypatch) -> tuple[str, list[str]]:
    monkeypatch.chdir(chain.root)
    return STAGES[request.param]


def outputs(argv: list[str]) -> list[Path]:
    """What a stage writes: where these are asked for, the others of these names are its inputs."""
    pairs = dict(zip(argv[::2], argv[1::2], strict=True))
    if "--models" in pairs:  # evaluate reads what fine-tunes measured
        pairs.pop("--measured")
    if "--signals" in pairs:  # plan reads what fit made
        pairs = {"--out": pairs["--out"]}
    return [Path(place) for option, place in pairs.items() if option in OUTPUTS]


def finished(chain: Chain) -> dict[str, bytes]:
    """Artifacts, without what a later run goes on from."""
    return {name: content for name, content in chain.bytes_of_all().items() if ".work" not in Path(name).parts}


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def child(name: str, argv: list[str], log: int | None = None, largest: int | None = None) -> multiprocessing.Process:
    """The stage in a child of this process, so that it starts at once; what it says goes to the file ``log``."""

    def work() -> None:
        if log is not None and largest is not None:
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        os._exit(exit_code(import_module(f"stages.{name}.__main__").main, argv))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_kills_at_random_moments_end_in_the_same_bytes(chain, stage):
    name, argv = stage
    whole = chain.bytes_of_all()
    for path in outputs(argv):
        remove(path)
    rng, statuses = random.Random(5), []
    while not statuses or statuses[-1] != 0:
        assert len(statuses) < 60
        process = child(name, argv)
        process.join(rng.uniform(0.02, 0.3) * 1.12 ** len(statuses))  # longer and longer: even a slow machine ends
        process.kill()
        process.join()
        statuses.append(process.exitcode)
        assert statuses[-1] in (0, -signal.SIGKILL)
    assert all(path.exists() for path in outputs(argv))
    assert chain.bytes_of_all() == whole


def test_a_full_disk_is_one_line_and_loses_nothing(chain, stage):
    """A limit on the size of files stands in for a full disk: the kernel refuses the write either way."""
    name, argv = stage
    before = finished(chain)
    files = [file for path in outputs(argv) for file in ([path] if path.is_file() else path.rglob("*"))]
    largest = max(file.stat().st_size for file in files)
    reading, writing = os.pipe()  # the limit is for files alone
    process = child(name, argv, writing, largest // 2)
    os.close(writing)
    with os.fdopen(reading) as log:
        said = log.read()
    process.join()
    assert process.exitcode == 2, said
    faults = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(faults) == 1, said
    assert "cannot write" in faults[0] or "space" in faults[0]
    assert finished(chain) == before
