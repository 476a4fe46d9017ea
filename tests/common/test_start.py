"""How threads wait for each other is decided when a stage starts, by what else the machine does."""

import os
import subprocess
import sys

import pytest

from tests.stage_sources import ROOT

SHOWN = """
import os, sys
import psutil
psutil.cpu_percent = lambda _: {percent}
sys.argv, sys.orig_argv = ["-m"], ["python", "-m", {module!r}]
import stages
print(os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("percent", "module", "shown"),
    [
        (0, "stages.finetune", "passive 10000"),
        (100, "stages.finetune", "passive None"),
        (0, "flows.sweep", "passive None"),
    ],
)
def test_threads_spin_for_a_moment_where_a_stage_starts_alone(percent, module, shown):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    code = SHOWN.format(percent=percent, module=module)
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=plain, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == shown
