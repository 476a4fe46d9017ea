import json
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from stages.common.params import Choices, Data, Limits, Splits

PROJECT = Path(__file__).resolve().parents[2]

SENTENCES = [
    "the cat sat on the mat and looked at the moon for a while",
    "Answer: yes Answer: no Label: sports Label: science Label: world",
    "a quick brown fox jumps over the lazy dog near the river bank",
]


def byte_level_tokenizer() -> Tokenizer:
    """A small byte-level BPE (GPT-2's kind) that puts <s> first and </s> last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def write_base(folder: Path, tokenizer: Tokenizer | None = None, context: int = 256) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": context, "eos_token_id": 1}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return folder


def make_data(**changes: Any) -> Data:
    """A valid ``data`` group with changes."""
    values: dict[str, Any] = {
        "source": "files",
        "path": "rows.jsonl",
        "name": None,
        "config": None,
        "revision": None,
        "stream": None,
        "splits": Splits(train="train", validation=None, test=None),
        "task": "classification",
        "template": "{text}\nLabel:",
        "answer_column": "label",
        "label_words": {},
        "choices": Choices(column=None, answer="text", score="character", first=0),
        "messages": None,
        "group_column": None,
        "balance": "train",
        "limits": Limits(train=None, validation=None, test=None),
        "seed": 1,
    }
    return Data(**(values | changes))


def write_params(path: Path, data: dict[str, Any], prepare: dict[str, Any]) -> None:
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    params["data"] |= {
        "source": "files",
        "path": "rows.jsonl",
        "splits": {"train": "train", "validation": None, "test": None},
        "template": "{text}\nLabel:",
        "answer_column": "label",
        "group_column": None,
        "limits": {"train": None, "validation": None, "test": None},
    } | data
    params["prepare"] |= prepare
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
