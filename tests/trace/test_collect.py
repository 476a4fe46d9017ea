"""The whole trace against Hugging Face's own hidden states, and its memory against the number of examples."""

import gc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from salf.engine.batches import Example
from salf.engine.models.adapter import open_model
from salf.engine.runtime import Runtime
from stages.common.params import Trace
from stages.trace.collect import Tracer, collect, draw_sample
from tests.engine.models.tiny import save_tiny

BEGINNING = [5, 6, 7]
RUNTIME = Runtime(torch.device("cpu"), torch.float32, "as the test wants it")
PARAMS = Trace(sample=None, losses=None, space="normed", target="output", batch_tokens=64, seed=3)


def write_split(folder, count, *, longest_prompt=8, beginning=BEGINNING, row_group_size=None):
    """A prepared training split of random tokens, answers of one token and more."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "example_id": f"e{i:06d}",
            "label": None if i % 5 == 0 else "a",
            "text": "text " * 20,
            "answer": "answer",
            "prompt_ids": [*beginning, *rng.integers(3, 97, rng.integers(1, longest_prompt + 1)).tolist()],
            "answer_ids": rng.integers(3, 97, rng.integers(1, 4)).tolist(),
        }
        for i in range(count)
    ]
    ids = pa.list_(pa.int32())
    columns = {name: pa.string() for name in ("example_id", "label", "text", "answer")}
    schema = pa.schema({**columns, "prompt_ids": ids, "answer_ids": ids})
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "train.parquet", row_group_size=row_group_size)
    return rows


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def model(tmp_path_factory, request):
    """A head with a bias would need another family; the bases' tests have one."""
    return open_model(save_tiny(tmp_path_factory.mktemp("model"), tie_word_embeddings=request.param), RUNTIME.device)


def run(model, prepared, folder, params=PARAMS, beginning=BEGINNING, runtime=RUNTIME):
    folder.mkdir(exist_ok=True)
    sample = draw_sample(prepared, params)
    collect(Tracer.prepare(model, runtime, params, sample.tokens, beginning), prepared, sample, {}, folder)
    return sample, pa.concat_tables(pq.read_table(part) for part in sorted(folder.glob("part-*.parquet"))).to_pylist()


def cosine_distance(a, b):
    return 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def reference(model, row, space, target, basis):
    """By the definitions, an example at a time, the whole prompt without packing: {position: (deviation, loss)}."""
    network, head = model.network, model.head.weight.double().numpy()
    gain = model.norm.weight.double().numpy() if basis == "head-and-norm" else 1.0
    inverse = np.linalg.pinv(head * gain)
    ids = row["prompt_ids"] + row["answer_ids"][:-1]
    caught = []
    hook = model.norm.register_forward_pre_hook(lambda _, args: caught.append(args[0][0]))
    with torch.no_grad():
        hidden = network(torch.tensor([ids]), output_hidden_states=True).hidden_states
        hook.remove()
        raw = [*[states[0] for states in hidden[:-1]], caught[0]]  # the last of HF's own is normed already
        normed = [model.norm(states).double().numpy() for states in raw]
    found = {}
    for position, token in enumerate(row["answer_ids"]):
        at = len(row["prompt_ids"]) - 1 + position
        answer = inverse[:, token]
        deviation, loss = [], []
        for k, states in enumerate(normed):
            share = k / model.depth if target == "virtual" else 1.0
            entry = model.embedding.weight[ids[at]].double().numpy()
            aim = entry + share * (answer - entry)
            seen = states[at] / gain if space == "normed" else raw[k][at].double().numpy()
            deviation.append(cosine_distance(seen, aim))
            logits = head @ states[at]
            loss.append(np.logaddexp.reduce(logits) - logits[token])
        found[position] = (deviation, loss)
    return found


@pytest.mark.parametrize("beginning", [BEGINNING, []], ids=["shared beginning", "none shared"])
@pytest.mark.parametrize("basis", ["head", "head-and-norm"])
@pytest.mark.parametrize(("space", "target"), [("normed", "output"), ("raw", "output"), ("normed", "virtual")])
def test_a_trace_is_what_hugging_faces_hidden_states_say(model, tmp_path, monkeypatch, space, target, basis, beginning):
    monkeypatch.setattr(model.norm.weight, "data", torch.linspace(0.5, 2, len(model.norm.weight)))
    monkeypatch.setattr("stages.trace.collect._STATES", 20)  # a few spaces at a time, and not always as many
    monkeypatch.setattr("stages.trace.collect.SHARD_EXAMPLES", 7)
    rows = write_split(tmp_path / "prepared", 17, beginning=beginning or [9])
    params = PARAMS.model_copy(update={"space": space, "target": target, "basis": basis, "losses": 6})
    sample, traced = run(model, tmp_path / "prepared", tmp_path / "traces", params, beginning)
    assert sample.positions == len(traced) == sum(len(row["answer_ids"]) for row in rows)
    assert sum(sample.with_losses) == 6
    for number, row in enumerate(rows):
        mine = [entry for entry in traced if entry["example_id"] == row["example_id"]]
        assert [entry["token_id"] for entry in mine] == row["answer_ids"]
        assert {entry["label"] for entry in mine} == {row["label"]}
        for position, (deviation, loss) in reference(model, row, space, target, basis).items():
            np.testing.assert_allclose(mine[position]["deviation"], deviation, atol=2e-5)
            if sample.with_losses[number]:
                np.testing.assert_allclose(mine[position]["loss"], loss, rtol=2e-5)
            else:
                assert mine[position]["loss"] is None


def test_a_sample_is_drawn_at_random_and_read_in_the_files_order(tmp_path):
    rows = write_split(tmp_path, 300, row_group_size=70)
    sample = draw_sample(tmp_path, PARAMS.model_copy(update={"sample": 40, "losses": 10}))
    assert sorted(set(sample.rows)) == sample.rows.tolist()
    assert len(sample.rows) == 40
    assert sum(sample.with_losses) == 10
    answers = [token for i in sample.rows for token in rows[i]["answer_ids"]]
    assert (sample.tokens, sample.positions) == (tuple(sorted(set(answers))), len(answers))
    larger = draw_sample(tmp_path, PARAMS.model_copy(update={"sample": 80, "losses": 10}))
    assert set(sample.rows) < set(larger.rows)  # a larger sample holds the smaller one, and its losses are the same
    assert set(sample.rows[sample.with_losses]) == set(larger.rows[larger.with_losses])
    half = [np.mean(draw_sample(tmp_path, PARAMS.model_copy(update={"sample": 40, "seed": s})).rows) for s in range(50)]
    assert abs(np.mean(half) - 149.5) < 6  # every row is as likely: standard error 1.8


@pytest.mark.slow
def test_no_more_examples_are_held_than_a_shard_and_a_stretch_have(model, tmp_path, monkeypatch):
    """Counted whenever a shard is written: examples alive, and Arrow's bytes against those of the whole split."""
    monkeypatch.setattr("stages.trace.collect.SHARD_EXAMPLES", 32)
    monkeypatch.setattr("salf.engine.batches._STRETCH", 32)
    alive, arrow, write = [], [], pq.write_table
    write_split(tmp_path / "prepared", 1000, longest_prompt=40, row_group_size=100)
    before = pa.total_allocated_bytes()

    def examples() -> int:
        return sum(type(thing) is Example for thing in gc.get_objects())

    others = examples()  # those that other tests keep

    def written(*args, **options):
        alive.append(examples() - others)
        arrow.append(pa.total_allocated_bytes() - before)
        write(*args, **options)

    monkeypatch.setattr(pq, "write_table", written)
    run(model, tmp_path / "prepared", tmp_path / "traces", PARAMS.model_copy(update={"losses": 0}))
    assert len(alive) == 32
    assert max(alive) <= 2 * 32
    assert max(arrow) < pq.read_table(tmp_path / "prepared" / "train.parquet").nbytes / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_a_gpu_writes_the_trace_that_a_cpu_writes(tmp_path, dtype, tolerance):
    """Deviations (0 to 2) and losses (about ln 97 = 4.6 nats) within an absolute tolerance of the CPU's in float32."""
    write_split(tmp_path / "prepared", 60)
    folder = save_tiny(tmp_path / "model", tie_word_embeddings=False)
    traced = {}
    for device, of_device in ("cpu", torch.float32), ("cuda", dtype):
        runtime = Runtime(torch.device(device), of_device, "as the test wants it")
        model = open_model(folder, runtime.device, of_device)
        _, traced[device] = run(model, tmp_path / "prepared", tmp_path / device, runtime=runtime)
    for on_cpu, on_gpu in zip(traced["cpu"], traced["cuda"], strict=True):
        for measure in ("deviation", "loss"):
            assert on_gpu.pop(measure) == pytest.approx(on_cpu.pop(measure), abs=tolerance)
        assert on_cpu == on_gpu  # examples, positions, tokens and labels
