"""``salf scale``: its numbers against plain arithmetic, PyTorch's counter and a measured run."""

import json
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salf.cli import main
from salf.cost import Flops
from salf.engine.answers import Embeddings, training_logits
from salf.engine.batches import Batch, Example
from salf.engine.boundary_cache.states import cache_boundary
from salf.engine.models.adapter import CausalModel
from salf.engine.runtime import choose_runtime
from salf.families import family_of
from salf.scale.command import duration
from salf.settings import Device
from tests.engine.models.tiny import tiny_network
from tests.salf.test_cost import counted_passes

pytestmark = pytest.mark.usefixtures("fused_attention")

ROWS, TOKENS, ANSWER, SHARED, BATCH, EPOCHS = 10, 12, 3, 4, 4, 3
WORKLOAD = [
    f"--{name}={value}"
    for name, value in {
        "rows": ROWS,
        "tokens": TOKENS,
        "answer-tokens": ANSWER,
        "shared-tokens": SHARED,
        "batch-rows": BATCH,
        "epochs": EPOCHS,
    }.items()
]


@pytest.fixture
def scale(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        main(["scale", *words, "--json", "out.json"])
        return json.loads((tmp_path / "out.json").read_text())["predictions"], capsys.readouterr().out

    return run


def test_every_boundary_is_told_with_its_assumptions(scale, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")  # of a terminal, or of a file
    (small, large), text = scale("--config", "smollm2-135m", "llama-70b")
    assert [point["boundary"] for point in small["boundaries"]] == list(range(31))
    assert len(large["boundaries"]) == 81
    for prediction in (small, large):
        shares = [point["flops_share"] for point in prediction["boundaries"]]
        assert shares[0] == 1
        assert shares == sorted(shares, reverse=True)
        peaks = [point["memory"]["peak"] for point in prediction["boundaries"]]
        assert peaks == sorted(peaks, reverse=True)
        assert all(line in " ".join(text.split()) for line in prediction["assumptions"])
        *points, last = prediction["boundaries"]
        assert last["lora"] is None
        assert all(point["lora"]["flops_backward_share"] < point["flops_backward_share"] for point in points)
    assert len(re.findall(r"LoRA +devices", text)) == 2  # the last columns
    assert "70,553,706,496 parameters" in " ".join(text.split())
    assert "…" not in text


def test_adapters_are_counted_at_the_rank_that_was_asked_for(scale):
    (usual,), (thick,) = (scale("--config", "gpt2", *words)[0] for words in ([], ["--lora-rank", "64"]))
    assert [point["flops"] for point in usual["boundaries"]] == [point["flops"] for point in thick["boundaries"]]
    assert thick["boundaries"][3]["lora"]["flops"] > usual["boundaries"][3]["lora"]["flops"]
    assert (usual["workload"]["lora_rank"], thick["workload"]["lora_rank"]) == (8, 64)


def test_a_large_models_cost_is_near_six_operations_a_parameter_and_token(scale):
    """Kaplan et al. 2020, section 2.1: C = 6 N D; of the head, here, at answer positions only."""
    (prediction,), _ = scale("--config", "llama-70b", "--rows", "1000", "--tokens", "512", "--epochs", "1")
    layers = 70_553_706_496 - 2 * 128_256 * 8192
    assert prediction["boundaries"][0]["flops"] == pytest.approx(6 * layers * 1000 * 512, rel=0.05)


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.slow), False])
def test_operations_are_those_that_pytorch_counts_in_a_whole_fine_tune(scale, tmp_path, tied):
    network = tiny_network(tie_word_embeddings=tied)
    network.save_pretrained(tmp_path / "tiny")
    (prediction,), _ = scale("--config", "tiny", *WORKLOAD)
    rows = [
        Example(str(n), None, "", "", (1, 2, 3, 4, *range(10 + n, 19 + n - ANSWER)), tuple(range(5, 5 + ANSWER)))
        for n in range(ROWS)
    ]
    for boundary in (0, 2, 4):
        # What the model sees of an example is all but its last token.
        assert all(len(row.prompt_ids) + ANSWER == TOKENS + 1 for row in rows)
        counted = count(tiny_network(tie_word_embeddings=tied), rows, boundary)
        # PyTorch does not count its fused attention on a CPU: take it off ours, by hand.
        layers, width = 4, 32
        own = TOKENS - SHARED
        batches = -(-ROWS // BATCH)
        beginning = SHARED * (SHARED + 1) // 2
        by_rows = ROWS * (own * SHARED + own * (own + 1) // 2)
        seen = sum(TOKENS - n for n in range(ANSWER)) * ROWS
        suffix = (
            4 * width * ((layers - boundary - 1) * (by_rows + batches * beginning) + seen if boundary < layers else 0)
        )
        frozen = 4 * width * boundary * (by_rows + beginning)
        point = prediction["boundaries"][boundary]
        assert point["flops"] - frozen - 3 * EPOCHS * suffix == counted.total, boundary
        assert point["flops_backward"] - 2 * EPOCHS * suffix == counted.backward, boundary


@pytest.mark.parametrize(("precision", "weights"), [("mixed", "float32"), ("bfloat16", "bfloat16")])
def test_the_cache_has_the_bytes_of_the_states_that_are_stored(scale, tmp_path, precision, weights):
    """Under autocast the residual stream stays in the weights' precision."""
    tiny_network().save_pretrained(tmp_path / "tiny")
    (prediction,), _ = scale("--config", "tiny", *WORKLOAD, "--precision", precision)
    prompt = (1, 2, 3, 4, *range(10, 19 - ANSWER))
    rows = [Example(str(n), None, "", "", prompt, tuple(range(5, 5 + ANSWER))) for n in range(ROWS)]
    model = CausalModel(tiny_network().to(getattr(torch, weights)), family_of("llama"))
    runtime = choose_runtime(Device(kind="cpu", dtype="bfloat16"))
    stored = cache_boundary(model, runtime, rows, SHARED, 2, batch_tokens=BATCH * TOKENS).rows
    assert {point["cache_bytes"] for point in prediction["boundaries"][1:]} == {stored.nbytes}


def count(network, rows, boundary):
    """All epochs above a boundary, batch by batch, and before them the frozen layers once over all rows."""
    model = CausalModel(network, family_of("llama"))
    for part in [model.embedding, *model.layers[:boundary]] if boundary else []:
        part.requires_grad_(False)
    runtime = choose_runtime(Device(kind="cpu", dtype="float32"))
    start = Embeddings.after(model, range(1, 1 + SHARED))
    with FlopCounterMode(display=False) as frozen:
        if boundary:
            start = cache_boundary(model, runtime, rows, SHARED, boundary, batch_tokens=BATCH * TOKENS)
    batches = [Batch.of(rows, range(at, min(at + BATCH, ROWS)), SHARED) for at in range(0, ROWS, BATCH)]
    epoch = counted_passes(lambda: [training_logits(model, start, batch) for batch in batches])
    return Flops(frozen.get_total_flops() + EPOCHS * epoch.forward, EPOCHS * epoch.backward)


def test_time_is_operations_over_the_rate_that_was_asked_for(scale):
    fast, text = scale("--config", "gpt2", "--teraflops", "2.5")
    whole = fast[0]["boundaries"][0]
    assert whole["seconds"] == pytest.approx(whole["flops"] / 2.5e12)
    assert "2.5 TFLOP/s, as given" in " ".join(text.split())
    (h100,), _ = scale("--config", "gpt2", "--device", "h100", "--utilisation", "0.5")
    # Each of 1,875 steps writes the gradient and reads it twice, and reads and writes weight and two moments: float32.
    traffic = 1875 * 124_439_808 * (3 * 4 + 2 * 12) / 3350e9
    assert h100["boundaries"][0]["seconds"] == pytest.approx(whole["flops"] / (989e12 * 0.5) + traffic, rel=1e-4)


def test_answers_alone_have_their_cost_memory_and_cache_at_every_boundary(scale):
    (model,), text = scale("--config", "smollm2-135m", "--tokens", "600", "--answer-tokens", "60", "--rows", "1000")
    *points, last = model["boundaries"]
    assert last["answer"] is None
    caches = [point["answer"]["cache_bytes"] for point in points]
    states = points[1]["cache_bytes"]
    # 539 of 540 prompt tokens, 30 layers, 3 heads of 64 for keys and for values, two bytes each in mixed precision
    assert caches[0] == 1000 * 540 * 30 * 2 * 192 * 2
    assert caches[15] == caches[0] // 2 + states
    for point in points:
        assert point["answer"]["flops"] < point["flops"]
        assert point["answer"]["memory"]["peak"] <= point["memory"]["peak"]
        assert point["answer"]["seconds"] < point["seconds"]
    assert "Weights that act on answers alone (+answer)" in text


def test_prepared_data_gives_the_workload(scale, tmp_path):
    train = {"rows": ROWS, "tokens": ROWS * TOKENS, "answer_tokens": ROWS * ANSWER}
    train["field_tokens"] = ROWS * (TOKENS - ANSWER)
    (tmp_path / "meta.json").write_text(json.dumps({"splits": {"train": train}, "shared_prefix_tokens": SHARED}))
    given, _ = scale("--config", "gpt2", *WORKLOAD)
    read, _ = scale("--config", "gpt2", "--prepared", str(tmp_path), f"--batch-rows={BATCH}", f"--epochs={EPOCHS}")
    assert read == given


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "gpt3"], "gpt3: neither a published configuration"),
        (["--config", "gpt2", "--tokens", "10", "--answer-tokens", "8", "--shared-tokens", "4"], r"\(12\)"),
        (["--config", "gpt2", "--prepared", "nowhere"], "dvc repro prepare"),
    ],
)
def test_bad_input_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a project folder may hold a run of this name
    assert main(["scale", *words]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert told.startswith("error: ")
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [["--rows", "0"], ["--teraflops", "-1"], ["--rows", "many"], ["--device", "abacus"]])
def test_bad_numbers_are_usage(scale, words, capsys):
    with pytest.raises(SystemExit) as ended:
        scale("--config", "gpt2", *words)
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "told"), [(0.5, "0.5 s"), (90, "1.5 min"), (5400, "1.5 h"), (129_600, "1.5 days")])
def test_durations_are_told_in_their_largest_unit(seconds, told):
    assert duration(seconds) == told
