"""From a model and prepared data to the signals that were asked for."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from salf.engine.batches import Example
from salf.engine.models.adapter import CausalModel, open_model
from salf.engine.models.frozen import WHOLE
from salf.engine.runtime import Runtime, choose_runtime
from salf.errors import UserError
from salf.files import read_json
from salf.selectors import SignalKind
from salf.settings import Device
from stages.common.params import Signals
from stages.signals.classes import classes_of
from stages.signals.grad_norm import gradient_norms
from stages.signals.probe import probes
from stages.signals.sample import draw_sample
from stages.signals.spectrum import spectrum
from stages.signals.states import PromptStates, prompt_states
from stages.signals.table import Signals as Values
from stages.signals.variability import variability

_OF_STATES: Final[frozenset[SignalKind]] = frozenset({"block-influence", "variability", "probe"})
_OF_CLASSES: Final[frozenset[SignalKind]] = frozenset({"variability", "probe"})
_OF_WEIGHTS: Final[frozenset[SignalKind]] = frozenset({"grad-norm", "spectrum"})  # they read what is stored


def measure(base: Path, prepared: Path, device: Device, params: Signals) -> tuple[Values, int]:
    """The signals of ``params.kinds``, and the model's number of layers.

    A kind that these examples cannot give is left out, which is told, as long as there are others.

    Raises:
        UserError: the data or the model can give none of the signals; says why.
    """
    shared = read_json(prepared / "meta.json")["shared_prefix_tokens"]
    runtime = choose_runtime(device)
    examples = draw_sample(prepared, params)
    params = params.model_copy(update={"kinds": _possible(params.kinds, examples)})
    read = WHOLE if _OF_WEIGHTS & set(params.kinds) else runtime.frozen()
    model = open_model(base, runtime.device, frozen=read)
    print(f"signals of {len(examples)} examples on {runtime.device} in {runtime.dtype_name}: {runtime.reason}")
    return _measure(model, runtime, examples, shared, params), model.depth


def _possible(kinds: Sequence[SignalKind], examples: Sequence[Example]) -> list[SignalKind]:
    """The kinds that these examples can give; known before anything is computed."""
    faults: dict[SignalKind, UserError] = {}
    for kind in kinds:
        try:
            if kind in _OF_CLASSES:
                classes_of(examples, kind)
        except UserError as fault:
            faults[kind] = fault
    possible = [kind for kind in kinds if kind not in faults]
    if not possible:
        raise next(iter(faults.values()))
    for kind, reason in faults.items():
        print(f"{kind} is left out: {reason}")
    return possible


def _measure(model: CausalModel, runtime: Runtime, examples: Sequence[Example], shared: int, params: Signals) -> Values:
    values: dict[str, Sequence[float]] = {}
    sample = (model, runtime, examples, shared, params.batch_tokens)
    if _OF_STATES & set(params.kinds):
        values |= _of_states(prompt_states(*sample), examples, params)
    if "grad-norm" in params.kinds:
        values["grad-norm"] = list(gradient_norms(*sample))
    if "spectrum" in params.kinds:
        values["spectrum"] = list(spectrum(model))
    return values


def _of_states(states: PromptStates, examples: Sequence[Example], params: Signals) -> Values:
    values: dict[str, Sequence[float]] = {}
    if "block-influence" in params.kinds:
        values["block-influence"] = list(1 - states.cosines)
    classes = partial(classes_of, examples)
    if "variability" in params.kinds:
        values["variability"] = list(variability(states.answer, classes("variability")))
    if "probe" in params.kinds:
        probed = probes(states, classes("probe"), params.folds, params.seed)
        values["probe"], values["probe-pooled"] = list(probed.answer), list(probed.pooled)
        values["probe-error"] = list(probed.error)
    return values
