"""Saves a fine-tuned model so that frozen layers keep their bytes, and can be proved to."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Self

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from salf.answer_folder import AnswerSideRecord
from salf.engine.answer_model import save_answer_side
from salf.engine.models.shards import INDEX, group_by_unit, share_file, write_index, write_tensors
from salf.engine.training.forms import ADAPTER, Lora, Trainable
from salf.files import lasting, read_json, write_json
from salf.records import BaseRecord

_WEIGHTS: Final = {INDEX, "base.json"}
_TEXTS: Final = {".json", ".jinja", ".model", ".txt"}


class Base(NamedTuple):
    """The name and revision by which other tools find the base model."""

    name: str  # a hub name or an absolute path
    revision: str | None = None  # of a hub name

    @classmethod
    def of(cls, base: BaseRecord, source: str, folder: Path) -> Self:
        """From the base's record, ``model.source`` and the base model's folder."""
        if base.source == "embedded":
            return cls(str(lasting(folder)))
        return cls(base.source, base.revision) if base.revision else cls(str(lasting(Path(source))))


def save_model(trainable: Trainable, base: Path, folder: Path, named: Base, end: int | None) -> list[str]:
    """Write the model in ``base``'s layout; return the units whose shards changed.

    Shards of untouched units, and all else of the base folder, are the base's own files, linked where the file system
    can; generation stops at ``end``, the token that answers were trained to end with. Adapters are saved as PEFT's
    folder ``adapter`` as well, where the base is called ``named``, then folded into the weights.
    """
    family, depth, network = trainable.model.family, trainable.model.depth, trainable.model.network
    for file in base.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name not in _WEIGHTS:
            share_file(file, folder / file.name)
    if end is not None:
        _stop_at(end, folder, network)
    trainable.form.save(folder, named.name, named.revision)
    if (folder / ADAPTER).is_dir():
        for file in [file for file in folder.iterdir() if file.suffix in _TEXTS and file.name != "config.json"]:
            share_file(file, folder / ADAPTER / file.name)
    more = trainable.form.stored()
    changed = {family.unit_of(name, depth) for name in trainable.form.fold()}
    stored = read_json(base / INDEX)["weight_map"]
    named_weights = {**_as_stored(network, stored), **more}
    units = group_by_unit([*stored, *more], family, depth)
    for unit, names in units.items():
        shard = f"{unit}.safetensors"
        if unit in changed:
            write_tensors(folder / shard, {name: named_weights[name].to(network.dtype) for name in names})
        else:
            share_file(base / shard, folder / shard)
    write_index(folder, units)
    return [unit for unit in units if unit in changed]


def save_answer_side_model(trainable: Trainable, folder: Path, named: Base, record: AnswerSideRecord) -> list[str]:
    """Write weights that act on answers alone, as ``salf.AnswerSideModel`` opens them; return the units that changed.

    Adapters are never folded into the weights: the base reads the prompts without them.
    """
    form = trainable.form
    weights = record.base.model_copy(update={"source": named.name, "revision": named.revision})
    record = record.model_copy(update={"base": weights, "form": trainable.method.form.name})
    save_answer_side(folder, form.adapters if isinstance(form, Lora) else trainable.model.network, record)
    return [] if isinstance(form, Lora) else trainable.units


def _stop_at(end: int, folder: Path, network: PreTrainedModel) -> None:
    """Let a token end generation too: transformers reads ``generation_config.json``, other tools ``config.json``."""
    generation = folder / "generation_config.json"
    if not generation.exists():  # what transformers makes of config.json
        made = network.generation_config.to_diff_dict() if network.generation_config else {}
        write_json(generation, {key: value for key, value in made.items() if key != "_from_model_config"})
    for file in (generation, folder / "config.json"):
        said = read_json(file)
        known = said.get("eos_token_id")
        ends = known if isinstance(known, list) else [] if known is None else [known]
        if end not in ends:
            write_json(file, {**said, "eos_token_id": [end, *ends] if ends else end})


def _as_stored(network: PreTrainedModel, names: Iterable[str]) -> dict[str, Tensor]:
    """The weights under the names of the base's files: transformers joins a mixture's experts when it loads them."""
    weights = network.state_dict()  # a layer's buffers are stored with its parameters
    return weights if weights.keys() >= set(names) else revert_weight_conversion(network, weights)
