"""The panel of a race: every arm is drawn, and the totals add up."""

from types import SimpleNamespace

from salf.records import RaceRecord
from stages.report.quality import race_section
from tests.fine_tune_records import fine_tune_record


def arm(method, rate, *losses):
    points = [
        {
            "step": 4 * at,
            "epoch": at,
            "flops": at,
            "train_loss": 1.0,
            "validation_loss": loss,
            "validation_accuracy": 0.5,
        }
        for at, loss in enumerate(losses, 1)
    ]
    facts = {"boundary": 0, "steps": 4 * len(losses), "flops": 10, "flops_backward": 5, "flops_validation": 1}
    return {"method": method, "learning_rate": rate, **facts, "curve": points}


def standing(number, fate, p_loss=None):
    scores = {"validation_loss": 0.5, "validation_accuracy": 0.5}
    return {"arm": number, **scores, "p_accuracy": 0.5, "p_loss": p_loss, "fate": fate}


RACE = RaceRecord.model_validate(
    {
        "keep": 2,
        "level": 0.05,
        "arms": [arm("full+answer", 0.01, 0.9, 0.4), arm("full+answer", 0.1, 2.0), arm("half", 0.01, 0.8, 0.5)],
        "looks": [
            {
                "epoch": 1,
                "level": 0.01,
                "standings": [standing(0, "stays"), standing(1, "worse loss", 0.0012), standing(2, "leads")],
            },
            {"epoch": 2, "level": None, "standings": [standing(0, "won"), standing(2, "lost")]},
        ],
        "winner": 0,
        "flops": 50,
        "flops_before": 17,
        "flops_winner": 20,
    }
)


def test_every_arm_is_drawn_and_the_totals_are_said():
    section = race_section(SimpleNamespace(runs={"race-seed1": fine_tune_record(race=RACE)}))
    (words,) = section.sentences
    assert "full+answer 0.01 won against 2 other arms, of which 1 were dropped as significantly worse" in words
    assert "34\u202f% for the caches, 6\u202f% for reading" in words
    (drawn,) = section.figures
    assert all(label in drawn.svg for label in ("full+answer 0.01", "full+answer 0.1", "half 0.01"))
    assert section.tables == []


def test_without_a_race_there_is_no_panel():
    assert race_section(SimpleNamespace(runs={"full-seed1": fine_tune_record()})) is None
