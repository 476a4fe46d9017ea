"""docs/large-models.md does what it says: its script, sharded over two processes, trains what one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from salf.plan import FreezePlan
from tests.conftest import PROJECT
from tests.docs_blocks import blocks
from tests.own_plan import changed_parts, write_plan_and_base

PAGE, SECTION = "large-models.md", "Sharded weights with FSDP"


def alone(root: Path) -> dict[str, torch.Tensor]:
    """The same two steps by one process that holds everything."""
    model = AutoModelForCausalLM.from_pretrained(root / "data/base")
    tokenizer = AutoTokenizer.from_pretrained(root / "data/base")
    optimizer = torch.optim.AdamW(FreezePlan.load(root / "data/plan/freeze_plan.json").apply(model), lr=1e-4)
    batch = [
        torch.tensor([tokenizer(text)["input_ids"]])
        for text in ("My parcel has not arrived. Team: delivery", "I was charged twice. Team: billing")
    ]
    for _ in range(2):
        sum(model(input_ids=ids, labels=ids).loss / len(batch) for ids in batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_sharded_script_trains_what_one_process_does(tmp_path, hub_folder):
    write_plan_and_base(tmp_path, hub_folder)
    ((_, script),) = blocks(PAGE, "python", SECTION)
    ((_, command),) = blocks(PAGE, "sh", SECTION)
    (tmp_path / "fsdp.py").write_text(script)
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        command.split(), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert changed_parts(tmp_path, "out/fsdp") == {"2", "3", "model.norm.weight"}
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "out/fsdp").state_dict()
    for name, expected in alone(tmp_path).items():
        torch.testing.assert_close(tuned[name], expected, rtol=1e-4, atol=1e-6)


def test_accelerate_takes_the_configuration(tmp_path):
    given = yaml.safe_load((PROJECT / "docs/fsdp.yaml").read_text())
    taken = load_config_from_file(str(PROJECT / "docs/fsdp.yaml"))
    assert taken.distributed_type == "FSDP"
    assert taken.num_processes == given["num_processes"] == 2
    assert taken.fsdp_config == given["fsdp_config"]
    assert json.dumps(given)  # plain values alone
