"""Opens a model folder, finds its parts and proves that they make the model.

Frozen layers' weights are stored whole, in fewer bits, or outside the device. Eight bits (LLM.int8, arXiv 2208.07339)
and four (NF4 with doubly quantised constants, QLoRA, arXiv 2305.14314) are bitsandbytes', and compute a slightly
different function. Weights in main memory or in the model's files come to the device one map at a time: that changes
only time, which a boundary cache pays once.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from salf.engine.models.attention import Packing
from salf.engine.models.causal_model import CausalModel, in_eval_mode
from salf.engine.models.walk import run_to_answers
from salf.errors import UserError, reading
from salf.families import family_of
from salf.files import read_json
from salf.memory import free_memory_bytes
from salf.settings import FrozenWeights

__all__ = ["CausalModel", "code_trusted", "open_model", "take_apart"]

# Rounding aside, the probe's logits are the model's own; a part taken for another changes all of them.
_TOLERANCE: Final = {torch.float32: 0.01, torch.float64: 0.01}
_TOLERANCE_COARSE: Final = 0.3  # 16 bits, or eight
_SHARED: Final = 2
_LENGTHS: Final = (3, 5)  # after the shared prefix: of two lengths, so that padding shows
_STEP: Final = 7919  # a prime: spreads the tokens over the vocabulary
_MEMORY_SHARE: Final = 0.8  # of free main memory that offloaded layers may take: what runs needs some as well


def without_weights(config: PretrainedConfig, *, trust_remote_code: bool) -> nn.Module:
    """Build the network on torch's meta device, which holds shapes and no numbers."""
    with torch.device("meta"):
        network: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return network


@dataclass(frozen=True)
class Frozen:
    """A model's frozen layers, and how their weights are stored."""

    layers: int | None  # 1..layers are frozen; ``None``: all of them
    held: FrozenWeights  # ``whole``, ``int8``, ``nf4`` or ``offload``

    def options(
        self, config: PretrainedConfig, device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool
    ) -> dict[str, Any]:
        """Arguments of ``from_pretrained``; none where the layers are held whole."""
        if self.held == "whole" or self.layers == 0:
            return {}
        network = without_weights(config, trust_remote_code=trust_remote_code)
        names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
        path = family_of(config.model_type, names).layers
        frozen = [f"{path}.{number}" for number, _ in network.get_submodule(path).named_children()][: self.layers]
        if self.held == "offload":
            return {"device_map": _places(network, path, frozen, device, dtype)}
        return {"device_map": {"": device}, "quantization_config": _quantisation(self.held, network, frozen, dtype)}


WHOLE: Final = Frozen(layers=0, held="whole")


def _quantisation(held: FrozenWeights, network: nn.Module, frozen: list[str], dtype: torch.dtype) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise UserError(f"device.frozen_weights = {held}: bitsandbytes is not installed; pip install bitsandbytes")
    # By the names of the maps themselves: a pattern of a layer would do for the trained ones, and leave the head.
    others = [
        name
        for name, part in network.named_modules()
        if not list(part.children()) and not name.startswith(tuple(f"{layer}." for layer in frozen))
    ]
    return BitsAndBytesConfig(
        load_in_8bit=held == "int8",
        load_in_4bit=held == "nf4",
        llm_int8_skip_modules=others,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _places(
    network: nn.Module, layers: str, frozen: list[str], device: torch.device, dtype: torch.dtype
) -> dict[str, str]:
    """The device of every part of the network: frozen layers outside the device, all else on it."""
    size = sum(p.numel() for name in frozen for p in network.get_submodule(name).parameters()) * dtype.itemsize
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of a launcher's: each holds the layers
    fits = here * size <= _MEMORY_SHARE * free_memory_bytes()
    outside = "cpu" if device.type != "cpu" and fits else "disk"
    return {name: outside if name in frozen else str(device) for name in _parts(network, layers)}


def _parts(network: nn.Module, layers: str, at: str = "") -> Iterator[str]:
    """The single layers, and the other modules of their parents."""
    for name, _ in network.get_submodule(at).named_children():
        path = f"{at}.{name}".lstrip(".")
        if path == layers or layers.startswith(f"{path}."):
            yield from _parts(network, layers, path)
        else:
            yield path


def open_model(
    folder: Path | str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    frozen: Frozen = WHOLE,
    base: Path | None = None,
) -> CausalModel:
    """Open a Hugging Face folder (or hub name) for inference; nothing requires a gradient.

    ``dtype`` is that of the weights, ``frozen`` says which layers will not be trained, and how they are held. ``base``
    is the base model's folder, which tells whether shipped code may run; ``folder`` unless given.

    Raises:
        UserError: the folder is no loadable model, lacks weights, or the model cannot be taken apart.
    """
    disable_progress_bar()  # ours tell of the long work; loading takes seconds
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)  # its report is read below
    trusted = code_trusted(base or Path(folder))
    with ExitStack() as stack, reading(folder, "cannot be opened as a causal language model"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        held = frozen.options(config, device, dtype, trust_remote_code=trusted)
        if held and frozen.held == "offload":
            # For weights that the network holds in another form than its files: a mixture's experts.
            held["offload_folder"] = stack.enter_context(TemporaryDirectory(prefix="salf-offloaded-"))
        network, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trusted,
            **held,
        )
        finalize(network, stack.pop_all().close)
    wrong = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} weights are missing or have another shape than config.json says "
            f"({', '.join(sorted(wrong)[:3])}); make the folder again"
        )
    # Four-bit maps compute with the values and in the precision that they were opened with, on every processor. With
    # AVX512_BF16, bitsandbytes 0.50 otherwise packs them again at the first pass: then they round their constants and
    # inputs to bfloat16, give no gradients, and refuse widths that are no multiple of 64.
    for part in network.modules():
        if getattr(part, "support_avx512bf16_for_cpu", False):
            part.support_avx512bf16_for_cpu = False
    network.requires_grad_(False)
    return take_apart(network.eval() if held else network.eval().to(device))


def code_trusted(base: Path) -> bool:
    """Whether the base stage copied the code that the model's author shipped, which allows it to run."""
    facts = base / "base.json"
    return facts.exists() and read_json(facts).get("trust_remote_code") is True


def take_apart(network: PreTrainedModel) -> CausalModel:
    """Find a network's parts, and check on a few tokens that they make the network.

    The check tells whether embedding, layers, norm and head are what the model itself uses, in its own order. It is
    short: what only shows after thousands of tokens (a wide window, stretched rotary angles) is up to the table of
    families and its tests; types outside the table keep the model's masks.

    Raises:
        UserError: a part was not found, or the parts do not make the model; says what and where.
    """
    # A tied head has a name of its own here, unlike in a file of weights.
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    family = family_of(network.config.model_type, names)
    try:
        model = CausalModel(network, family)
    except AttributeError as error:
        raise UserError(f"model type {network.config.model_type!r}: a part was not found: {error}") from None
    require_same_logits(network, lambda: _probe(model))
    return model


@contextmanager
def apart(network: PreTrainedModel) -> Iterator[CausalModel]:
    """A network taken apart for a while, in eval mode; then it is as before. See :func:`take_apart`."""
    attention = network.config._attn_implementation
    try:
        with in_eval_mode(network):
            yield take_apart(network)
    finally:
        network.set_attn_implementation(attention)


def require_same_logits(network: PreTrainedModel, both: Callable[[], tuple[Tensor, Tensor]]) -> None:
    """Compare logits computed layer by layer with the network's own, [N, vocabulary] both; refuse any difference."""
    kind = network.config.model_type
    try:
        with torch.no_grad():
            far = difference(*both())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"model type {kind!r}: its layers cannot be run one by one: {reason[:300]}") from None
    if not math.isfinite(far):
        raise UserError(f"{network.name_or_path}: {_not_finite(network)}")
    # LLM.int8 takes a column of its inputs for an outlier by all rows of a pass, and ours hold others.
    rounds = getattr(network, "is_loaded_in_8bit", False)
    if not far <= (_TOLERANCE_COARSE if rounds else _TOLERANCE.get(network.dtype, _TOLERANCE_COARSE)):
        raise UserError(f"{kind!r}: its layers, run one by one, give other logits ({far:.2g}): not supported")


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference of centred logits [N, vocabulary] over the norm of the second ones; NaN if not finite."""
    ours, theirs = (logits.double() - logits.double().mean(-1, keepdim=True) for logits in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


def _probe(model: CausalModel) -> tuple[Tensor, Tensor]:
    """Our logits and the model's own at the ends of two prompts, [2, vocabulary] both."""
    vocabulary, device = model.embedding.weight.shape[0], model.device
    tokens = (torch.arange(1, _SHARED + sum(_LENGTHS) + 1, device=device) * _STEP) % vocabulary
    beginning, *own = tokens.split([_SHARED, *_LENGTHS])
    packing = Packing.of(_LENGTHS, device, past=_SHARED)
    ends = torch.tensor(_LENGTHS, device=device).cumsum(0) - 1
    states = model.embed(tokens, packing.position_ids()[0])
    ours = model.logits(run_to_answers(model, states, 0, packing, ends))
    # Padded on the right, which a causal model never looks back from: one pass of the model's own for both.
    prompts = pad_sequence([torch.cat([beginning, rest]) for rest in own], batch_first=True)
    last = torch.tensor(_LENGTHS, device=device) + _SHARED - 1
    return ours, model.network(prompts, use_cache=False).logits[torch.arange(len(own), device=device), last]


def _not_finite(network: PreTrainedModel) -> str:
    for name, weight in network.named_parameters():
        if not weight.isfinite().all():
            return f"the weight {name} is not finite (NaN or infinite); it was trained at too high a rate, or damaged"
    return (
        f"its logits are not finite in {network.dtype}, or the same for every token: "
        "choose another device.dtype, or another model"
    )
