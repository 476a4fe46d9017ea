"""What a fine-tune trained, in the words of its model card; and a method that there is none of, on the command line."""

import pytest

from salf.records import FineTuneParams
from salf.settings import Device
from stages.finetune.__main__ import main
from stages.finetune.card import head_words, trained_words
from tests.engine.training.tiny_training import params
from tests.fine_tune_records import fine_tune_record

DEPTH = 6


def run_of(method, layers, *, boundary=0, final=True, **changes):
    units = [f"layer-{layer:02d}" for layer in layers]
    if not method.endswith("lora"):
        units = ["embedding"] * (boundary == 0) + units + ["final"] * final
    settings = params(lisa_layers=2, lisa_steps=5)
    return fine_tune_record(
        method=method,
        boundary=boundary,
        trained_layers=layers,
        trained_units=units,
        params=FineTuneParams(device=Device(kind="cpu", dtype="float32"), finetune=settings),
        **changes,
    )


@pytest.mark.parametrize(
    ("run", "trained"),
    [
        (run_of("full", [1, 2, 3, 4, 5, 6]), "all layers"),
        (run_of("salf", [4, 5, 6], boundary=3), "layers 4–6"),
        (run_of("freeze-5", [6], boundary=5), "layer 6"),
        (run_of("none", [], boundary=6), "the final norm only"),
        (run_of("freeze-1+lora", [2, 3, 4, 5, 6], boundary=1), "layers 2–6"),
        (run_of("first-n", [1, 2], final=False), "embeddings and layers 1–2"),
        (run_of("lisa", [1, 3, 4, 6]), "embeddings and layers 1, 3–4, 6"),
    ],
)
def test_what_was_trained(run, trained):
    assert trained_words(run, DEPTH) == trained


@pytest.mark.parametrize(
    ("run", "tied", "own"),
    [
        (run_of("full", [1, 2, 3, 4, 5, 6]), "and trained", "and trained"),
        (run_of("salf", [4, 5, 6], boundary=3), "and stayed frozen", "and trained"),
        (run_of("first-n", [1, 2], final=False), "and trained", "and stayed frozen"),
        (run_of("lisa", [1, 2]), "and trained", "and trained"),
        (run_of("lora", [1, 2]), "are the base's", "are the base's"),
    ],
)
def test_what_became_of_the_head(run, tied, own):
    assert tied in head_words(run, tied=True)
    assert own in head_words(run, tied=False)


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        ({}, ""),
        ({"kept": ["mean", "last"]}, "the mean of the weights over the last third of steps"),
        ({"kept": ["best"], "looks": 5, "steps_planned": 12}, "the weights of step 9, the best of 5 looks at the"),
        (
            {"kept": ["last"], "looks": 3, "steps_planned": 36},
            "the last weights; training ended after 12 of 36 steps",
        ),
    ],
)
def test_which_weights_the_model_has_is_said(kept, words):
    entries = [
        {"keep": keep, "step": 9, "validation_loss": 1.0, "validation_accuracy": None} for keep in kept.get("kept", ())
    ]
    record = fine_tune_record(**{**kept, "kept": entries})
    assert record.kept_words.startswith(words)
    assert bool(record.kept_words) == bool(words)
    assert record.validated.validation_loss == (1.0 if kept else 1.5)


@pytest.mark.parametrize("method", ["salv", "freeze-x", "lisa+lora"])
def test_a_method_that_there_is_none_of_ends_with_what_is_allowed(method, capsys):
    paths = ["--base", "b", "--prepared", "p", "--plan", "f", "--out", "o", "--measured", "m", "--seed", "1"]
    with pytest.raises(SystemExit) as ended:
        main([*paths, "--method", method])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --method: {method}: " in said
    assert "allowed: a selector (" in said or "leave out +lora" in said
