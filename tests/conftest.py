"""Shared fixtures: the real data beside the project, and a small random model in the hub's layout."""

import random
import signal
from pathlib import Path

import pytest
from ruamel.yaml import YAML

SHARED = Path(__file__).resolve().parents[2] / "shared"
PROJECT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Handle Ctrl-C where a shell's background job ignores it: the children of tests would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real data sets beside the project (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory) -> Path:
    """A random Llama of four layers with a byte-level tokenizer, as a folder in the hub's layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tests.engine.models.tiny import save_tiny

    folder = tmp_path_factory.mktemp("hub") / "tiny-llama"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    save_tiny(
        folder, vocab_size=len(vocabulary), tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=1
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def fused_attention(monkeypatch) -> None:
    """Attention by the fused kernel whatever the length: its operations are what costs count.

    PyTorch does not count that kernel on a CPU, and plain products over whole grids, masked places included.
    """
    from salf.engine.models import attention

    monkeypatch.setattr(attention, "_short", lambda *_: False)


def write_params(folder: Path, **changes: object) -> Path:
    """The shipped params.yaml with some values changed; ``group__key=value``, deeper keys likewise."""
    yaml = YAML()
    params = yaml.load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    for path, value in changes.items():
        *groups, name = path.split("__")
        place = params
        for group in groups:
            place = place[group]
        place[name] = value
    target = folder / "params.yaml"
    with target.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    return target


def write_colours(path: Path, rows: int = 240, seed: int = 0) -> Path:
    """A csv whose labels a small model can learn: which colour word stands in the text?"""
    rng = random.Random(seed)
    colours = {"red": "warm", "blue": "cold", "grey": "dull"}
    lines = ["text,label"]
    for n in range(rows):
        colour = list(colours)[n % 3]
        noise = "".join(rng.choices("abcdefghij", k=rng.randint(3, 8)))
        more = "".join(rng.choices("klmnopqrst", k=rng.randint(3, 8)))
        lines.append(f"{noise} {colour} {more},{colours[colour]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tiny_task(folder: Path, hub_folder: Path, **changes: object) -> None:
    """Parameters and data of a task that the small model learns in seconds on any processor."""
    write_colours(folder / "colours.csv")
    settings: dict[str, object] = {
        "model__source": str(hub_folder),
        "data__source": "files",
        "data__path": "colours.csv",
        "data__template": "{text} is",
        "data__answer_column": "label",
        "data__group_column": None,
        "data__splits": {"train": "train", "validation": None, "test": None},
        "device__kind": "cpu",
        "device__dtype": "float32",
    }
    write_params(folder, **{**settings, **changes})
