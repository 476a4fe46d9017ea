"""Parameters: the shipped file is valid, and every way of going wrong is named in one line."""

from pathlib import Path
from time import process_time

import pytest
from ruamel.yaml import YAML

from salf.errors import UserError
from salf.settings import Caching
from stages.common.params import Fit, Params, Plan, Room, load_params
from tests.conftest import PROJECT, write_params


def fault(tmp_path, **changes):
    write_params(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    return str(caught.value).removeprefix(f"{tmp_path}/params.yaml: ")


def test_the_shipped_file_is_valid_and_every_group_is_commented():
    params = load_params(PROJECT / "params.yaml")
    assert params.compare.methods[0] == "full"
    for line in (PROJECT / "params.yaml").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", " ")) and not line.startswith(("prepare:", "trace:", "fit:", "plan:")):
            assert line.rstrip().endswith(":") or "#" in line


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finetune__epochs": 0}, "finetune.epochs = 0: Input should be greater than or equal to 1"),
        ({"finetune__epochs": "three"}, "finetune.epochs = 'three': Input should be a valid integer"),
        ({"finetune__epochs": 2.5}, "finetune.epochs = 2.5: Input should be a valid integer"),
        ({"finetune__cache": "ram"}, "finetune.cache = 'ram': Input should be 'auto', 'memory', 'disk' or 'off'"),
        ({"finetune__cache_gib": 0}, "finetune.cache_gib = 0: Input should be greater than 0"),
        (
            {"plan__selector": "salv"},
            "plan.selector = 'salv': Input should be 'half', 'salf', 'salf-dev",
        ),
        ({"race__arms": []}, "race.arms = []: List should have at least 1 item"),
        ({"race__keep": 0}, "race.keep = 0: Input should be greater than or equal to 1"),
        ({"race__arms": [{"method": "hlaf", "learning_rate": 0.1}]}, "race.arms.0.method = 'hlaf': no such method"),
        ({"race__arms": [{"method": "half"}]}, "race.arms.0.learning_rate: missing"),
        ({"race__arms": [{"method": "half", "learning_rate": []}]}, "race.arms.0.learning_rate = []: List should have"),
        (
            {"race__arms": [{"method": "lora", "learning_rate": 0.1}, {"method": "full+lora", "learning_rate": 0.1}]},
            "full+lora at learning rate 0.1 appears twice",
        ),
        ({"race__arms": [{"method": "lisa", "learning_rate": 0.1}]}, "lisa freezes up to no layer"),
        ({"compare__methods": ["race"], "finetune__equal_compute": True}, "the arms of a race train equally long"),
        (
            {"compare__methods": ["race"], "finetune__keep": "mean"},
            "full+answer+lora: finetune.keep = mean cannot be combined with lora",
        ),
        ({"trace__smaple": 3}, "trace.smaple: unknown parameter; did you mean sample?"),
        (
            {"finetune__learning_rate__full": -1.0},
            "finetune.learning_rate.full.0 = -1.0: Input should be greater than 0",
        ),
        ({"compare__methods": ["full", "full"]}, "the same entry appears twice"),
        (
            {"compare__methods": ["freeze-9"], "finetune__learning_rate": {"full": 1e-4}},
            "finetune.learning_rate has no entry for freeze-9",
        ),
        (
            {"compare__methods": ["salf", "freeze-x"]},
            "compare.methods.1 = 'freeze-x': no such method; allowed: a selector",
        ),
        (
            {"compare__methods": ["lisa+lora"]},
            "compare.methods.0 = 'lisa+lora': lisa cannot be combined with lora: it acts above",
        ),
        ({"compare__methods": ["half+lozo"]}, "finetune.learning_rate has no entry for half+lozo"),
        (
            {"compare__methods": ["half+lozo"], "finetune__learning_rate": {"half+lozo": 1e-3}},
            "half+lozo: it counts steps, not epochs: set finetune.lozo.steps, or finetune.equal_compute to true",
        ),
        ({"race__arms": [{"method": "half+mezo", "learning_rate": 0.1}]}, "half+mezo counts steps, and the arms"),
        ({"finetune__lozo": {"momentum": 1.0}}, "finetune.lozo.momentum = 1.0: Input should be less than 1"),
        (
            {"compare__methods": ["full+lozo+extrap"]},
            "compare.methods.0 = 'full+lozo+extrap': lozo and extrap both decide the update: leave one out",
        ),
        (
            {"compare__methods": ["half+pace"]},
            "compare.methods.0 = 'half+pace': pace needs lora: add +lora",
        ),
        (
            {"compare__methods": ["half+lora+pace+distill"]},
            "half+lora+pace+distill': pace and distill both decide the objective: leave one out",
        ),
        (
            {"compare__methods": ["full+answer+lora+pace"]},
            "pace has not been shown to work with answer: leave out +pace",
        ),
        (
            {"compare__methods": ["half+distill"], "prepare__chat_template": True},
            "half+distill: prepare.chat_template cannot be combined with distill: what all prompts begin with holds",
        ),
        ({"finetune__pace__sigma": -0.1}, "finetune.pace.sigma = -0.1: Input should be greater than or equal to 0"),
        ({"finetune__pace__every": 0}, "finetune.pace.every = 0: Input should be greater than or equal to 1"),
        ({"finetune__distill__weight": 1.1}, "finetune.distill.weight = 1.1: Input should be less than or equal to 1"),
        ({"finetune__distill__over": "labels"}, "finetune.distill.over = 'labels': Input should be 'answers' or 'voc"),
        (
            {"compare__variants": {"half": {"method": "lora"}}},
            "compare.variants.half = 'half': a method has this name; give the variant another one",
        ),
        (
            {"compare__variants": {"tfidf": {"method": "lora"}}},
            "compare.variants.tfidf = 'tfidf': a baseline has this name; give the variant another one",
        ),
        (
            {"compare__variants": {"freeze-3": {"method": "lora"}}},
            "a method has this name; give the variant another one",
        ),
        (
            {"compare__variants": {"a+b": {"method": "lora"}}},
            "compare.variants.a+b = 'a+b': a variant's name has small letters, digits, - and _ only",
        ),
        ({"compare__variants": {"a": {"method": "lore"}}}, "compare.variants.a.method = 'lore': no such method"),
        ({"compare__variants": {"a": {"lora_rank": 4}}}, "compare.variants.a.method: missing"),
        (
            {"compare__variants": {"a": {"method": "lora", "lora_rang": 4}}},
            "compare.variants.a.lora_rang = 4: no setting of finetune",
        ),
        (
            {"compare__variants": {"a": {"method": "lora", "lora_rank": 0}}},
            "compare.variants.a.lora_rank = 0: Input should be greater than or equal to 1",
        ),
        (
            {"compare__variants": {"a": {"method": "half", "learning_rate": {"full": 0.1}}}},
            "compare.variants.a: learning_rate has no entry for half",
        ),
        ({"finetune__sift__share": 0.0}, "finetune.sift.share = 0.0: Input should be greater than 0"),
        ({"finetune__sift__share": 1.5}, "finetune.sift.share = 1.5: Input should be less than or equal to 1"),
        (
            {"finetune__roste__weight_bits": 1},
            "finetune.roste.weight_bits = 1: Input should be greater than or equal to 2",
        ),
        ({"finetune__roste__kv_bits": 17}, "finetune.roste.kv_bits = 17: Input should be less than or equal to 16"),
        ({"finetune__roste__clip": 0.0}, "finetune.roste.clip = 0.0: Input should be greater than 0"),
        ({"finetune__dcp__alpha": 0.5}, "finetune.dcp.alpha = 0.5: Input should be greater than or equal to 1"),
        ({"finetune__dcp__strength": -1.0}, "finetune.dcp.strength = -1.0: Input should be greater than or equal to 0"),
        (
            {"finetune__roste__rotation": "some"},
            "finetune.roste.rotation = 'some': Input should be 'adaptive', 'all' or",
        ),
        (
            {"finetune__keep": ["last", "mean"]},  # the methods hold lora
            "lora: finetune.keep = mean cannot be combined with lora: the mean of low-rank",
        ),
        (
            {"compare__variants": {"a": {"method": "half+lora", "keep": "ema"}}},
            "compare.variants.a: half+lora: finetune.keep = ema cannot be combined with lora: the mean of",
        ),
        (
            {"plan__budget": "20 parsecs"},
            "plan.budget = '20 parsecs': allowed: a share of full fine-tuning's FLOPs (above",
        ),
        (
            {"plan__budget": 1.5},
            "plan.budget = 1.5: allowed: a share of full fine-tuning's FLOPs (above 0, up to 1), or",
        ),
        ({"plan__budget": "0 min"}, "plan.budget = '0 min': allowed"),
        ({"plan__budget": True}, "plan.budget = True: allowed"),
        (
            {"plan__budget": "2.50 USD", "plan__price_per_hour": None},
            "plan.price_per_hour = None: plan.budget = 2.50 USD is a price: set that of an hour on this machine, in",
        ),
        ({"plan__price_per_hour": 0}, "plan.price_per_hour = 0: Input should be greater than 0"),
        ({"finetune__keep": "swa"}, "finetune.keep.0 = 'swa': Input should be 'last', 'best', 'mean' or 'ema'"),
        ({"finetune__keep": ["last", "last"]}, "finetune.keep = ['last', 'last']: the same entry appears twice"),
        (
            {"compare__methods": ["full"], "finetune__keep": "mean", "finetune__patience": 2},
            "finetune.patience = 2: the mean and ema of the last third need all steps; set patience to null",
        ),
        (
            {"finetune__evaluations_per_epoch": 0, "finetune__patience": 2},
            "finetune.patience = 2: nothing is compared before the last step; set evaluations_per_epoch to 1 or more",
        ),
        ({"finetune__learning_rate": {"ful": 1e-4}}, "finetune.learning_rate.ful = 'ful': no such method"),
        ({"data__source": "hub"}, "source is hub, but name is null: set data.name"),
        ({"model__trust_remote_code": "yes"}, "model.trust_remote_code = 'yes': Input should be a valid boolean"),
        ({"compare__seeds": [-1]}, "compare.seeds.0 = -1: Input should be greater than or equal to 0"),
        ({"fit__seed": 2**32}, "fit.seed = 4294967296: Input should be less than 4294967296"),
        ({"data__splits__test": "../out"}, "data.splits.test = '../out': a split's name is a plain name, not a path"),
        ({"data__splits__train": "a\0b"}, "a split's name is a plain name, not a path"),
        ({"data__splits__validation": "/tmp/x"}, "a split's name is a plain name, not a path"),
        ({"data__splits__train": ".."}, "a split's name is a plain name, not a path"),
        ({"data__splits__validation": "test"}, "two splits have one name"),
        ({"data__splits__shifted": {"ood": "test"}}, "two splits have one name"),
        ({"data__splits__shifted": {"test": "ood"}}, "a shifted split has the name of another split"),
        ({"data__splits__shifted": {"O D": "ood"}}, "data.splits.shifted.O D = 'O D': String should match pattern '^["),
        ({"data__splits__shifted": {"ood": "ood"}}, "source is docstrings, which has no further splits: set"),
        ({"data__label_words": {0: 1}}, "data.label_words.0 = 1: Input should be a valid string"),
        ({"nonsense": {}}, "nonsense: unknown parameter; known here: compare, data, device"),
        ({"plan__max_tokens": 64}, "plan.max_tokens: unknown parameter; did you mean prepare.max_tokens?"),
        ({"data__train": 64}, "data.train: unknown parameter; did you mean data.splits.train?"),
        ({"data__balance": "test"}, "data.balance = 'test': Input should be 'train', 'all' or 'none'"),
        ({"data__balance": 1}, "data.balance = 1: Input should be 'train', 'all' or 'none'"),
        ({"prepare__near_duplicate": 0}, "prepare.near_duplicate = 0: Input should be greater than 0"),
    ],
)
def test_a_fault_names_the_key_the_value_and_what_is_allowed(tmp_path, changes, expected):
    assert expected in fault(tmp_path, **changes)


def test_all_faults_are_named_at_once(tmp_path):
    text = fault(tmp_path, finetune__epochs=0, trace__space="cooked", evaluate__bootstrap=1)
    assert len(text.splitlines()) == 3


def test_every_missing_key_is_a_line_that_says_what_to_write(tmp_path):
    params = YAML(typ="safe").load(write_params(tmp_path))
    for group, key in (("plan", "first_n"), ("data", "balance"), ("finetune", "warmup_share")):
        del params[group][key]
    del params["fit"]
    YAML(typ="safe").dump(params, tmp_path / "params.yaml")
    with pytest.raises(UserError) as caught:
        load_params(tmp_path / "params.yaml")
    assert [line.removeprefix(f"{tmp_path}/params.yaml: ") for line in str(caught.value).splitlines()] == [
        "data.balance: missing: Input should be 'train', 'all' or 'none'",
        "fit: missing: a group of bootstrap, holdout_layers, confidence, seed",
        "plan.first_n: missing: Input should be a valid integer",
        "finetune.warmup_share: missing: Input should be a valid number",
    ]


def test_the_file_of_release_0_1_0_is_read_with_its_own_values():
    path = Path(__file__).with_name("params-0.1.0.yaml")
    old, now = YAML(typ="safe", pure=True).load(path), load_params(path).model_dump(mode="json")
    assert (old["data"].pop("balance"), now["data"].pop("balance")) == (True, "all")
    for method, rate in old["finetune"]["learning_rate"].items():
        assert now["finetune"]["learning_rate"][method] == [rate]
    del now["finetune"]["learning_rate"]
    assert now["data"]["splits"].pop("shifted") == {}
    for group, values in old.items():
        assert {key: now[group][key] for key in values if key != "learning_rate"} == {
            key: value for key, value in values.items() if key != "learning_rate"
        }


def test_a_grid_of_boundaries_needs_no_rates_of_its_own(tmp_path):
    methods = [*(f"freeze-{k}" for k in range(31)), "none", "random+lora", "freeze-3+lora", "first-n", "lisa"]
    write_params(tmp_path, compare__methods=methods, finetune__learning_rate__salf=[3e-4, 1e-4])
    finetune = load_params(tmp_path / "params.yaml").finetune
    assert finetune.rates("freeze-12", 12) == finetune.rates("none", 30) == [1e-4, 3e-4]
    assert finetune.rates("freeze-0", 0) == finetune.rates("lisa", 0) == [1e-4]
    assert finetune.rates("random+lora", 4) == [1e-3]


def test_a_rate_that_only_the_plan_shows_to_be_missing_is_named(tmp_path):
    write_params(tmp_path, compare__methods=["random"], finetune__learning_rate={"salf": 1e-4})
    finetune = load_params(tmp_path / "params.yaml").finetune
    with pytest.raises(UserError, match=r"no entry for random \(boundary 0\)"):
        finetune.rates("random", 0)


def test_a_missing_file_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("model: [unclosed")
    with pytest.raises(UserError, match="not valid YAML"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["[" * 20_000, "a: {b: " * 20_000, "- " * 20_000 + "x", "[\n" * 20_000])
def test_deep_nesting_is_one_line_and_quick(tmp_path, text):
    (tmp_path / "params.yaml").write_text(text)
    began = process_time()
    with pytest.raises(UserError, match=r"not valid YAML: .*(nested more than 100 deep|recursion depth)") as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
    assert process_time() - began < 1


def test_a_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    write_params(tmp_path, data__path="~/rows.csv", finetune__cache_folder="~/cache")
    params = load_params(tmp_path / "params.yaml")
    assert (params.data.path, params.finetune.cache_folder) == ("/home/me/rows.csv", "/home/me/cache")
    monkeypatch.setenv("DVC_STAGE", "base")
    assert "data.path = '~/rows.csv': DVC does not expand ~; write /home/me/rows.csv" in fault(
        tmp_path, data__path="~/rows.csv"
    )


def test_numbers_are_read_as_dvc_reads_them(tmp_path):
    """YAML 1.2: 1e-4 is a number; the older dialect makes it a word."""
    write_params(tmp_path)
    path = tmp_path / "params.yaml"
    path.write_text(
        path.read_text(encoding="utf-8").replace("weight_decay: 0.01", "weight_decay: 1e-2"), encoding="utf-8"
    )
    assert load_params(path).finetune.weight_decay == 0.01
    assert YAML(typ="safe").load("x: 1e-2") == {"x": 0.01}


def test_a_room_sees_its_own_groups_and_no_others(tmp_path):
    class Two(Room):
        fit: Fit
        plan: Plan

    write_params(tmp_path)
    room = Two.load(tmp_path / "params.yaml")
    assert set(Two.model_fields) == {"fit", "plan"}
    assert room.fit.bootstrap == load_params(tmp_path / "params.yaml").fit.bootstrap
    assert not hasattr(room, "trace")


def test_a_room_that_names_a_part_of_a_group_sees_no_more_of_it(tmp_path):
    class Part(Room):
        finetune: Caching

    write_params(tmp_path, finetune__cache="memory")
    part = Part.load(tmp_path / "params.yaml").finetune
    assert part.cache == "memory"
    assert set(vars(part)) == {"cache", "cache_folder", "cache_gib"}


def test_a_fault_in_another_stages_group_stops_the_first_stage(tmp_path):
    class One(Room):
        fit: Fit

    write_params(tmp_path, evaluate__bootstrap=1)
    with pytest.raises(UserError, match=r"evaluate\.bootstrap"):
        One.load(tmp_path / "params.yaml")


def test_parameters_cannot_be_changed_on_the_way():
    params = load_params(PROJECT / "params.yaml")
    with pytest.raises(ValueError, match="frozen"):
        params.fit.seed = 3
    assert set(Params.model_fields) == set(YAML(typ="safe").load((PROJECT / "params.yaml").read_text(encoding="utf-8")))


def test_a_variant_changes_what_it_names_of_a_group(tmp_path):
    variants = {"a": {"method": "half+sift", "sift": {"select": "random"}, "answer_side": {"from": "turn"}}}
    changes = {"finetune__sift": {"share": 0.2}, "finetune__answer_side__extra": 3}
    params = load_params(write_params(tmp_path, compare__variants=variants, **changes))
    found = params.compare.variant("a").settings(params.finetune)
    assert (found.sift.share, found.sift.select) == (0.2, "random")
    assert (found.answer_side.extra, found.answer_side.start) == (3, "turn")
    assert params.finetune.sift.select == "gradient"
