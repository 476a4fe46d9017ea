"""One entry for each selector and each signal: what is said of them elsewhere follows from it."""

import re
import subprocess
import sys
from pkgutil import resolve_name

import pytest

from salf.selectors import EVIDENCE, SELECTORS, SIGNALS
from tests.conftest import PROJECT


def row(name, entry):
    """The selector's line in the table of docs/selectors.md."""
    boundary = re.sub(r"plan\.\w+", lambda found: f"`{found[0]}`", entry.boundary)
    source = f" ([{entry.source}](https://arxiv.org/abs/{entry.source.split()[-1]}))" if entry.source else ""
    return f"| `{name}` | {boundary}{source} | {EVIDENCE[entry.needs]} |"


def test_the_documentation_lists_the_selectors():
    text = (PROJECT / "docs/selectors.md").read_text(encoding="utf-8")
    table = text.partition("| selector | boundary | evidence |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    family = "| `salf-<quantity>-<gain>` | the same by the named quantity and gain | trace |"
    expected = [family if "quantity" in entry.settings else row(name, entry) for name, entry in SELECTORS.items()]
    assert table == list(dict.fromkeys(expected))


def test_the_shipped_parameters_list_the_signals():
    text = (PROJECT / "params.yaml").read_text(encoding="utf-8")
    assert f"any of {', '.join(SIGNALS)};" in text


@pytest.mark.parametrize(
    ("entry", "room"),
    [
        *(pytest.param(each, "stages.plan", id=name) for name, each in SELECTORS.items()),
        *(pytest.param(each, "stages.signals", id=f"signal {name}") for name, each in SIGNALS.items()),
    ],
)
def test_every_entry_has_a_function(entry, room):
    assert callable(resolve_name(f"{room}.{entry.function}"))


def test_parameters_are_checked_without_torch_and_without_a_stage():
    code = (
        "import sys; from stages.common.params import load_params; load_params(); "
        "sys.exit(any(m.split('.')[0] in ('torch', 'transformers', 'sklearn') or m.startswith(('stages.plan', "
        "'stages.signals')) for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0
