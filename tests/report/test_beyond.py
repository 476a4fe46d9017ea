"""Figures of the shift from the base: against the last frozen layer, and against the rank where ranks differ."""

from types import SimpleNamespace

import pytest

from salf.methods import method_of
from salf.metrics import ShiftPanel
from stages.report.beyond import beyond_section


def section_of(runs: dict[str, tuple[str, int, int]]):
    """The section on a shift; runs by label: method, boundary and rank."""
    models = {}
    for at, name in enumerate(runs, 1):
        score = {"kl_from_base": {"value": at / 10, "low": 0.0, "high": 1.0}}
        models[name] = {"scores": score, "minus_full": {}, "minus_base": {}, "share_of_full": {}}
    panel = {"examples": 8, "models": models, "layers": {name: [0.0, 0.1] for name in runs}}
    metrics = {
        "shifted": {},
        "groups": {},
        "pairs": None,
        "kept": {},
        "shift": {"test": ShiftPanel.model_validate(panel)},
    }
    methods = [SimpleNamespace(name=name, record=SimpleNamespace(boundary=k)) for name, (_, k, _) in runs.items()]
    records = {
        f"{name}-seed1": SimpleNamespace(
            how=method_of(method), label=name, params=SimpleNamespace(finetune=SimpleNamespace(lora_rank=rank))
        )
        for name, (method, _, rank) in runs.items()
    }
    return beyond_section(SimpleNamespace(metrics=SimpleNamespace(**metrics), methods=methods, runs=records))


RANKS = {"small": ("freeze-2+lora", 2, 4), "large": ("freeze-2+lora", 2, 64), "full": ("full", 0, 8)}


@pytest.mark.parametrize(
    ("left_out", "drawn"),
    [((), {"layer", "rank"}), (("small",), {"layer"}), (("full",), {"rank"}), (("small", "full"), set())],
)
def test_what_differs_between_methods_is_an_axis(left_out, drawn):
    section = section_of({name: run for name, run in RANKS.items() if name not in left_out})
    figures = {figure.title: figure.svg for figure in section.figures}
    layers, *others = figures
    assert layers == "KL from the base on test, by layer"
    assert {title.rpartition(" by ")[2].split()[-1] for title in others} == drawn
    for title in others:
        names = {"small", "large", *(["full"] * ("layer" in title))} - set(left_out)
        assert all(f">{name}<" in figures[title] for name in names)
        assert (">full<" in figures[title]) == ("full" in names)
