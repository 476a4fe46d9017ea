"""The wheel by itself: built, installed without dependencies, and used where DVC and Prefect cannot be imported."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.own_plan import changed_parts, write_plan_and_base
from tests.stage_sources import ROOT

# Refuses the pipeline's packages, as if they were not installed.
_WITHOUT_PIPELINE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"dvc", "prefect", "stages", "flows"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
"""
_IMPORT = """
import json, os, sys
before = dict(os.environ)
import salf
heavy = {"torch", "transformers", "peft", "dvc", "prefect", "pandas"} & set(sys.modules)
print(json.dumps({"file": salf.__file__, "heavy": sorted(heavy), "same": before == dict(os.environ)}))
"""
_UNDECLARED = """
import sys
from importlib.metadata import packages_distributions, requires
import salf.cli, salf.law_command, salf.scale.command

loaded = {name.partition(".")[0] for name in sys.modules}
from packaging.requirements import Requirement

declared, found = ["salf"], packages_distributions()
for name in declared:
    needed = map(Requirement, requires(name) or ())
    wanted = [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    declared += [name for name in wanted if name not in declared]
known = {name.lower().replace("_", "-") for name in declared}
print(*{name for top in loaded for name in found.get(top, ()) if name.lower().replace("_", "-") not in known})
"""
_EXAMPLE = """
import torch
from transformers import AutoModelForCausalLM
import salf

model = AutoModelForCausalLM.from_pretrained("data/base")
{lines}
ids = torch.arange(8)[None]
model(input_ids=ids, labels=ids).loss.backward()
optimizer.step()
model.save_pretrained("out")
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A fresh environment with the wheel; other packages are this environment's, the pipeline's refused."""
    root = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "salf", root / "source/salf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    venv.create(root / "env")
    bin_folder, pip = root / "env/bin", [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", root, root / "source"], check=True)
    (wheel,) = root.glob("salf-*.whl")
    subprocess.run([*pip, "--python", bin_folder / "python", "install", "--no-deps", wheel], check=True)
    (site,) = (root / "env/lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    (site / "sitecustomize.py").write_text(_WITHOUT_PIPELINE)

    def run(*words, cwd=root):
        done = subprocess.run([bin_folder / words[0], *words[1:]], cwd=cwd, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.site = site
    return run


def test_importing_it_loads_nothing_heavy_and_changes_nothing(python):
    told = json.loads(python("python", "-c", _IMPORT))
    assert told == {"file": str(python.site / "salf/__init__.py"), "heavy": [], "same": True}


def test_the_command_imports_only_packages_that_the_wheel_declares(python):
    undeclared = set(python("python", "-c", _UNDECLARED).split())
    assert undeclared <= {"attrs", "setuptools"}  # rich takes the first if it is there; Python starts with the other


def test_every_public_name_is_there(python):
    assert python("python", "-c", "import salf; print([getattr(salf, name) is None for name in salf.__all__])")


def test_the_three_lines_of_the_readme_train_what_the_plan_says(python, tmp_path, hub_folder):
    write_plan_and_base(tmp_path, hub_folder)
    (lines,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    python("python", "-c", _EXAMPLE.format(lines=lines), cwd=tmp_path)
    assert changed_parts(tmp_path, "out") == {"2", "3", "model.norm.weight"}


def test_the_command_shows_exports_and_estimates(python, tmp_path, hub_folder):
    write_plan_and_base(tmp_path, hub_folder)
    assert "layers 1-2 frozen" in python("salf", "show", cwd=tmp_path)
    assert "layers_to_transform" in python("salf", "export", "--format", "peft", cwd=tmp_path)
    assert "llama-8b" in python("salf", "scale", "--config", "llama-8b")


@pytest.mark.parametrize("absent", ["torch", "transformers"])
def test_what_the_training_calls_need_is_named_in_one_line(absent):
    program = f"import sys; sys.modules[{absent!r}] = None; import salf; salf.prefix_states"
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True).stderr
    told = f'salf.prefix_states needs {absent}, which is not installed: pip install "/path/to/this/project[training]"'
    assert said.splitlines()[-1] == f"salf.errors.UserError: {told}"
