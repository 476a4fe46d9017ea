"""What a study does next, and in which order."""

import pytest

from stages.study.agenda import Known, agenda, grid_of, widened
from stages.study.description import Case

A, B = Case("a", "m"), Case("b", "m")


def told(fine_tunes):
    return [f"{one.case.data_set}{one.seed} {one.method} {one.budget[0]} {list(one.rates)}" for one in fine_tunes]


def end(known, fine_tunes):
    """Fine-tunes that have ended, at the last rate of their grid."""
    return Known({**known.done, **{one: one.rates[-1] for one in fine_tunes}})


def finish(description, known=None):
    """All that is wanted has ended."""
    known = known or Known({})
    while ready := [one for one in missing(description, known) if one.rates]:
        known = end(known, ready[:1])
    return known


def missing(description, known):
    return [one for one in agenda(description, description.cases(), known) if one not in known.done]


def test_the_first_of_every_region_is_tuned_first_on_every_data_set(described):
    wanted = agenda(described(), [A, B], Known({}))
    assert told(wanted)[:3] == ["a1 full e [0.001, 0.002]", "a1 freeze-4 e [0.01, 0.02]", "a1 freeze-8 e []"]
    assert told(one for one in wanted if one.rates) == [
        "a1 full e [0.001, 0.002]",
        "a1 freeze-4 e [0.01, 0.02]",
        "b1 full e [0.001, 0.002]",
        "b1 freeze-4 e [0.01, 0.02]",
    ]


def test_others_take_over_the_rate_of_their_region(described):
    description = described(boundaries=[0, 0.25, 0.5, 0.75, 1])
    known = end(Known({}), [one for one in agenda(description, [A], Known({})) if one.rates])
    assert told(missing(description, known))[:3] == [
        "a1 freeze-2 e [0.002]",
        "a1 freeze-6 e [0.02]",
        "a1 freeze-8 e [0.02]",
    ]


@pytest.mark.parametrize(
    ("rates", "best", "beyond"),
    [
        ([0.001, 0.002, 0.005], 0.002, None),
        ([0.001, 0.002, 0.005], 0.005, 0.013),
        ([0.001, 0.002, 0.005, 0.0005], 0.0005, 0.00025),  # in any order
        ([0.2, 0.7], 0.7, None),  # no rate is above 1
        ([0.1], 0.1, None),
        ([0.001, 0.00101], 0.00101, None),  # rounded it is one of the grid's
    ],
)
def test_a_grid_is_continued_by_its_own_step_beyond_the_end_that_won(rates, best, beyond):
    assert widened(rates, best) == beyond


def test_a_grid_is_widened_until_an_inner_rate_wins_and_the_others_wait_for_it(described):
    """Full fine-tuning's best is 0.008, which is there after three more rates; the other region's is an inner one."""
    description, known = described(seeds=[1, 2], widen=4, data_sets={"a": {}}), Known({})
    trained = []

    def best(one):
        full = one.method == "full"
        return max((rate for rate in one.rates if rate <= 0.008), default=min(one.rates)) if full else 0.01

    while one := next((one for one in missing(description, known) if one.rates), None):
        trained.append((one.seed, one.method, one.rates))
        known = Known({**known.done, one: best(one)})
    full = [(seed, rates) for seed, method, rates in trained if method == "full"]
    grid = (0.001, 0.002, 0.004, 0.008, 0.016)
    assert full == [*((1, grid[:size]) for size in (2, 3, 4, 5)), (2, (0.008,))]
    deep = [rates for seed, method, rates in trained if (seed, method) == (1, "freeze-4")]
    assert deep == [(0.01, 0.02), (0.01, 0.02, 0.005)]


def test_a_grid_is_widened_no_further_than_is_asked(described):
    known = finish(described(seeds=[1, 2], widen=2))
    assert told(known.done)[-1] == "b2 freeze-8 e [0.08]"
    assert max((one.rates for one in known.done if one.method == "full"), key=len) == (0.001, 0.002, 0.004, 0.008)


def test_what_was_tried_counts_though_fewer_rates_are_asked_for_later(described):
    known = finish(described(seeds=[1], widen=2))
    tried = max((one.rates for one in known.done if one.method == "full"), key=len)
    only = {one: result for one, result in known.done.items() if one.method != "full" or one.rates == tried}
    (full, *_) = agenda(described(seeds=[1], widen=1), [A], Known(only))
    assert (full.method, full.rates, full in only) == ("full", tried, True)


def test_a_grid_that_ended_at_its_edge_is_continued_when_more_rates_are_allowed(described):
    """The finished row counts, and the next fine-tune has its rates and one more."""
    arm = {"full+answer": {"rates": [0.1, 0.2], "widen": 0}}
    known = finish(described(methods=arm, seeds=[1]))
    wider = described(methods={"full+answer": {**arm["full+answer"], "widen": 1}}, seeds=[1])
    assert told(missing(wider, known)) == ["a1 full+answer e [0.1, 0.2, 0.4]", "b1 full+answer e [0.1, 0.2, 0.4]"]
    assert told(missing(wider, finish(wider, known))) == []


def test_every_data_set_has_its_boundaries_before_any_has_a_second_seed(described):
    order = [(one.seed, one.method) for one in agenda(described(), [A, B], Known({}))]
    methods = ("full", "freeze-4", "freeze-8")
    assert order == [(1, name) for name in methods] * 2 + [(2, name) for name in methods] * 2
    description = described(data_sets={"a": {"boundaries": [0, 0.5]}, "b": {}})
    assert [one.method for one in agenda(description, [A], Known({}))] == ["full", "freeze-4"] * 2


@pytest.mark.parametrize(("layers", "grid"), [(30, [0, 15, 23, 30, 8]), (5, [0, 3, 4, 5, 2])])
def test_the_grid_leads_with_the_boundaries_that_are_tuned(described, layers, grid):
    description = described(
        boundaries=[0, 0.25, 0.5, 0.75, 1],
        learning_rates={0: [0.1], 0.5: [0.1], 0.75: [0.1], 1: [0.1]},
        models={"m": {"layers": layers}},
    )
    assert grid_of(description, A) == grid


def test_where_a_method_is_measured_is_data(described):
    """Its datasets, models, seeds and grid, and whether it also trains for full fine-tuning's FLOPs."""
    arms = {
        "full+answer": {"data_sets": ["b"], "rates": [0.1, 0.2, 0.3], "budgets": ["epochs", "compute"]},
        "half+lora": {"seeds": [2]},
        "half+mezo": {"data_sets": ["b"], "seeds": [1], "budgets": ["compute"]},
        "elsewhere": {"models": []},
        "lisa": {"data_sets": ["a"]},
        "race": {"data_sets": ["a"]},
    }
    known = finish(described(methods=arms))
    assert sorted(line for line in told(known.done) if line.split()[1] in arms) == [
        "a1 lisa e [0.001, 0.002]",
        "a1 race e [0.0]",
        "a2 half+lora e [0.001, 0.002]",
        "a2 lisa e [0.002]",
        "a2 race e [0.0]",
        "b1 full+answer c [0.3]",
        "b1 full+answer e [0.1, 0.2, 0.3]",
        "b1 half+mezo c [0.001, 0.002]",
        "b2 full+answer c [0.3]",
        "b2 full+answer e [0.3]",
        "b2 half+lora e [0.001, 0.002]",
    ]


def test_a_method_may_take_the_rate_that_was_tuned_for_another(described):
    arms = {
        "slow-half": {"method": "half", "rate_of": "full"},
        "fast-full": {"method": "full", "rate_of": "half"},
        "lora": {"rates": [0.3, 0.4]},
        "lora-64": {"method": "lora", "rate_of": "lora", "set": {"finetune.lora_rank": 64}},
    }
    description = described(methods=arms, data_sets={"a": {}}, seeds=[1])
    waiting = [one.method for one in agenda(description, [A], Known({})) if one.method in arms and not one.rates]
    assert waiting == ["slow-half", "fast-full", "lora-64"]
    assert sorted(line for line in told(finish(description).done) if line.split()[1] in arms) == [
        "a1 fast-full e [0.02]",
        "a1 lora e [0.3, 0.4]",
        "a1 lora-64 e [0.4]",
        "a1 slow-half e [0.002]",
    ]


def test_a_study_that_is_stopped_anywhere_comes_to_the_same(described):
    """Whatever had ended: what is left and what is there are the same fine-tunes in the end."""
    description = described(methods={"lisa": {"budgets": ["epochs", "compute"]}})
    whole = finish(description)
    for stop in range(0, len(whole.done), 5):
        part = dict(list(whole.done.items())[:stop])
        assert set(finish(description, Known(part)).done) == set(whole.done)
