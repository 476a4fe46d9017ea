"""The stage from its files to its artifact, on a small random model."""

import io
import json
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM

from salf.errors import UserError
from salf.shape import ModelShape
from stages.common.params import load_params
from stages.signals import pilots
from tests.conftest import write_params
from tests.docs_blocks import blocks

SMALL = {"pilot__boundaries": [0.25, 0.5], "pilot__sizes": [0.25]}


@pytest.fixture(scope="module")
def finished(ready):
    """The artifact of a whole grid, and what was printed meanwhile."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(ready.root)
        return ready.pilot(), printed.getvalue()


@pytest.fixture
def artifact(finished):
    return finished[0]


def losses_of_hugging_face(folder, split):
    """Mean loss of each example's answer tokens before training, by Hugging Face's own forward pass."""
    network = AutoModelForCausalLM.from_pretrained(folder / "data/base", dtype=torch.float32).eval()
    losses = []
    for row in pd.read_parquet(folder / f"data/prepared/{split}.parquet").itertuples():
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids]], dtype=torch.long)
        with torch.no_grad():
            logits = network(ids).logits[0, len(row.prompt_ids) - 1 : -1]
        losses.append(
            torch.nn.functional.cross_entropy(logits, torch.tensor([*row.answer_ids], dtype=torch.long)).item()
        )
    return losses


def test_every_boundary_is_piloted_with_every_size_and_learns_more_from_more(artifact):
    pilots = pd.DataFrame(artifact["pilots"])
    assert sorted(set(pilots.boundary)) == [0, 1, 2]
    assert sorted(set(pilots.examples)) == [12, 24, 48]
    assert len(pilots) == 9
    means = pilots.groupby("examples").validation_loss.mean()
    assert means[12] > means[24] > means[48]
    assert pilots.validation_loss.max() < artifact["untrained_loss"]


def test_the_loss_before_training_is_hugging_faces(artifact, ready):
    assert artifact["untrained_loss"] == pytest.approx(
        np.mean(losses_of_hugging_face(ready.root, "validation")), rel=1e-5
    )


def test_every_boundary_gets_a_prediction_within_its_interval(artifact):
    rows = artifact["predictions"]
    assert [row["boundary"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["low"] <= row["high"] for row in rows)
    assert min(row["excess"] for row in rows) == 0
    assert set(artifact["law"]["parameters"]) - {"B"} == {"E", "A", "alpha", "beta"}


def test_what_was_computed_is_what_was_announced(finished):
    artifact, printed = finished
    flops = artifact["flops"]
    assert f"{flops['share']:.2f} times the FLOPs of one full fine-tune" in printed
    assert flops["total"] == sum(flops[part] for part in ("frozen", "training", "reading"))
    assert flops["training"] == sum(pilot["flops"] for pilot in artifact["pilots"])


def test_the_full_fine_tune_is_what_the_stage_finetune_counts(artifact, workspace):
    """At boundary 0, all examples, both epochs: a pilot of share 1 is that fine-tune."""
    whole = workspace.pilot(pilot__boundaries=[0], pilot__sizes=[1.0])
    (pilot,) = whole["pilots"]
    assert pilot["examples"] == 96
    assert whole["flops"]["full_fine_tune"] == pilot["flops"] == artifact["flops"]["full_fine_tune"]
    config = json.loads((workspace.root / "data/base/config.json").read_text())
    shape = ModelShape.from_config(config)
    meta = json.loads((workspace.root / "data/prepared/meta.json").read_text())
    maps = 6 * shape.layers * shape.linear_products * meta["splits"]["train"]["tokens"] * 2  # two epochs
    assert 0.8 < pilot["flops"] / maps < 1.3  # attention and head on top; the last layer at answers alone


def test_a_run_that_was_stopped_goes_on_behind_the_last_pilot_to_the_same_bytes(workspace, monkeypatch):
    workspace.pilot(**SMALL)
    whole, real, seen = workspace.out.read_bytes(), pilots.train, []

    def counting(*args, **kwargs):
        seen.append(args[0].costs.scope.boundary)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    workspace.out.unlink()
    monkeypatch.setattr(pilots, "train", counting)
    with pytest.raises(KeyboardInterrupt):
        workspace.pilot(**SMALL)
    assert not workspace.out.exists()
    workspace.pilot(**SMALL)
    assert workspace.out.read_bytes() == whole
    assert seen == [1, 2, 2]
    assert not list(workspace.out.parent.glob(".work/pilot.json-*"))


@pytest.fixture(scope="module")
def by_method(ready):
    """The artifact of three methods, four ranks and two draws on a small grid, and what was printed meanwhile."""
    printed = io.StringIO()
    grid = {"boundaries": [0.5, 0.75], "sizes": [0.125, 0.25, 0.5], "methods": ["weights", "lora", "dfa"]}
    changes = {**grid, "ranks": [1, 2, 4, 8], "draws": 2}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(ready.root)
        made = ready.pilot(**{f"pilot__{key}": value for key, value in changes.items()}, finetune__dfa__last="exact")
    return made, printed.getvalue()


def test_every_method_and_rank_is_piloted_with_every_draw_and_all_of_it_counts(by_method):
    made, printed = by_method
    pilots = pd.DataFrame(made["pilots"])
    assert pilots.groupby(["method", "boundary"]).size().to_dict() == {
        **{(name, 2): 6 for name in ("weights", "lora", "dfa")},
        ("weights", 3): 6,
        ("dfa", 3): 6,
        ("lora", 3): 24,  # the ranks at the deepest, one of them the grid's
    }
    assert set(pilots["rank"].dropna()) == {1, 2, 4, 8}
    costs = pilots[(pilots.examples == 48) & (pilots.draw == 0) & (pilots.boundary == 3)].set_index(["method", "rank"])
    assert costs.flops["lora", 1] < costs.flops["lora", 8]
    assert costs.flops["lora", 1] < costs.flops.groupby("method").max()["weights"]
    assert f"{made['flops']['share']:.2f} times the FLOPs of one full fine-tune" in printed
    assert made["flops"]["training"] == pilots.flops.sum()


def test_another_draw_learns_from_other_examples(by_method):
    pilots = pd.DataFrame(by_method[0]["pilots"])
    losses = pilots[pilots.method == "weights"].pivot(index=["boundary", "examples"], columns="draw").validation_loss
    assert (losses[0] != losses[1]).all()


def test_direct_feedback_is_back_propagation_where_the_last_layer_alone_trains_and_its_error_is_exact(by_method):
    pilots = pd.DataFrame(by_method[0]["pilots"])
    losses = pilots.pivot_table(index=["boundary", "examples", "draw"], columns="method", values="validation_loss")
    np.testing.assert_allclose(losses.dfa[3], losses.weights[3], rtol=1e-6)
    assert (abs(losses.dfa[2] / losses.weights[2] - 1) > 1e-4).all()


def test_laws_forecasts_and_critical_sizes_are_of_every_method(by_method):
    made, printed = by_method
    assert set(made["laws"]) == {"weights", "lora", "dfa", "lora by rank"}
    assert made["law"] == made["laws"]["weights"]
    first, ranks = made["laws"]["lora"]["parameters"], made["laws"]["lora by rank"]["parameters"]
    assert {name: ranks[name] for name in set(ranks) - {"A", "alpha"}} == pytest.approx(
        {name: first[name] for name in set(first) - {"A", "alpha"}}
    )
    assert {row["examples"] for row in made["forecasts"]} == {96, 192}
    assert {row["level"] for row in made["forecasts"] if row["method"] == "lora by rank"} == {1, 2, 4, 8}
    pairs = {(frozenset((row["below"], row["above"])), row["level"]) for row in made["critical_sizes"]}
    assert len(pairs) == len(made["critical_sizes"]) == 6  # three pairs, one and two trained layers
    assert "critical size at level 2" in printed


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"methods": ["weights"], "ranks": [1, 2, 4, 8]}, "needs lora in pilot.methods"),
        ({"methods": ["lora"], "ranks": [1, 2, 4]}, "at least 4 ranks"),
        ({"methods": ["weights", "lora"], "boundaries": [0, 1]}, "the plan freezes all 4 layers, so lora has none"),
        ({"methods": ["weights", "sift"]}, r"pilot\.methods"),
    ],
)
def test_pilots_that_cannot_be_are_refused_in_one_line(workspace, changes, why):
    with pytest.raises(UserError, match=why) as refused:
        workspace.pilot(**{f"pilot__{key}": value for key, value in changes.items()})
    assert not workspace.out.exists()
    assert len(str(refused.value).splitlines()) == 1


def test_the_documented_pilots_are_parameters(tmp_path):
    (_, block) = next(each for each in blocks("tuning.md", "yaml", "Which method at my data size"))
    changes = YAML(typ="safe", pure=True).load(block)["pilot"]
    params = load_params(write_params(tmp_path, **{f"pilot__{name}": value for name, value in changes.items()}))
    assert params.pilot.methods == ["weights", "lora"]


def test_a_grid_of_learning_rates_is_searched_at_the_largest_size_alone(workspace):
    rates = {"full": 0.003, "salf": [1e-6, 0.003], "lora": 0.003, "salf+lora": 0.003}
    made = workspace.pilot(finetune__learning_rate=rates, pilot__boundaries=[0.25], pilot__sizes=[0.125, 0.25])
    tried = [(pilot["examples"], pilot["learning_rate"], pilot["kept"]) for pilot in made["pilots"]]
    assert tried == [(24, 1e-6, False), (24, 0.003, True), (12, 0.003, True)]


def test_frozen_layers_that_run_for_every_batch_cost_more_and_learn_the_same(workspace):
    kept, anew = workspace.pilot(**SMALL), workspace.pilot(**SMALL, finetune__cache="off")
    assert anew["flops"]["total"] > kept["flops"]["total"]
    for one, other in zip(anew["pilots"], kept["pilots"], strict=True):
        assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-3)


def test_a_missing_learning_rate_is_named(workspace):
    with pytest.raises(UserError, match=r"finetune\.learning_rate has no entry for freeze-1"):
        workspace.pilot(finetune__learning_rate={"full": 0.003}, compare__methods=["full"])
