"""The selectors, and the signals that some of them need: one entry each.

What a parameter may name, the help, the table in ``docs/selectors.md`` and the evidence that a plan asks for follow
from these entries. The functions are imported when they are called, so this module loads neither torch nor a stage.
"""

from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

Quantity = Literal["deviation", "loss"]
GainName = Literal["observed", "ratio", "local", "marginal", "law"]
GAINS: Final[Mapping[GainName, str]] = {
    "observed": "observed gain",
    "ratio": "gain relative to the law's (capability ratio)",
    "local": "local-law exponent",
    "marginal": "marginal gain predicted by the law",
    "law": "gain by the law from the peak on",
}
OF_THE_POWER_LAW: Final[frozenset[GainName]] = frozenset({"ratio", "marginal"})  # computed from it, over all depth


class Signal(NamedTuple):
    """One kind of evidence that stage ``signals`` measures."""

    function: str  # "module:name" in stages/signals; takes the sample and returns the columns
    columns: tuple[str, ...]  # names in reports/signals.csv
    of_classes: bool = False  # tells classes apart, so the sample must have some
    of_weights: bool = False  # reads weights as they are stored, so none may be quantised or offloaded


class Selector(NamedTuple):
    """One way to choose a boundary."""

    function: str  # "module:name" in stages/plan; takes evidence and the parameters `plan`, returns a choice
    boundary: str  # which one it chooses, in words
    needs: str = "none"  # its evidence: a kind of signal, or a key of EVIDENCE
    source: str = ""  # the publication that it follows
    settings: Mapping[str, str] = {}  # values of `plan` that its name fixes


SIGNALS: Final[Mapping[str, Signal]] = {
    "block-influence": Signal("sample:block_influence", ("block-influence",)),
    "variability": Signal("classes:variability", ("variability",), of_classes=True),
    "probe": Signal("classes:probe", ("probe", "probe-pooled", "probe-error"), of_classes=True),
    "grad-norm": Signal("weights:gradient_norm", ("grad-norm",), of_weights=True),
    "spectrum": Signal("weights:spectrum", ("spectrum",), of_weights=True),
}

EVIDENCE: Final[Mapping[str, str]] = {
    "none": "none",
    "cost": "cost only",
    "trace": "trace",
    "prediction": "pilots, otherwise the law",
    "pilot": "`pilot.enabled: true`",
    **{kind: f"`signals.kinds: [{kind}]`" for kind in SIGNALS},
}

SELECTORS: Final[Mapping[str, Selector]] = {
    "half": Selector("choice:half", "half of the layers (the default)"),
    "salf": Selector(
        "by_trace:salf", "the layer with the largest gain, by plan.quantity and plan.gain", "trace", "arXiv 2406.11753"
    ),
    **{
        f"salf-{quantity}-{gain}": Selector(
            "by_trace:salf_alone",
            f"the layer with the largest gain of the {quantity}, counted as {gain}",
            "trace",
            settings={"quantity": quantity, "gain": gain},
        )
        for quantity, gain in product(get_args(Quantity), get_args(GainName))
    },
    "salf-law": Selector(
        "by_trace:salf_alone",
        "the layer with the largest gain by the law of plan.quantity, fitted from its peak on",
        "trace",
        "arXiv 2406.11753",
        settings={"gain": "law"},
    ),
    "budget": Selector("by_trace:budget", "the best predicted quality within plan.budget", "prediction"),
    "tolerance": Selector(
        "by_trace:tolerance", "the cheapest within plan.tolerance of full fine-tuning's predicted quality", "prediction"
    ),
    "affordable": Selector("choice:affordable", "the shallowest within plan.budget", "cost"),
    "pilot": Selector(
        "by_trace:pilot",
        "the deepest within plan.tolerance standard errors of the best predicted loss",
        "pilot",
        "arXiv 2402.17193",
    ),
    "arrival": Selector(
        "by_signals:arrival",
        "the layer that removes most of the errors of a ridge classifier at the answer's position",
        "probe",
    ),
    "probe": Selector(
        "by_signals:probe",
        "the first space where a ridge classifier on the prompt's mean state is within one standard error of the best",
        "probe",
    ),
    "block-influence": Selector(
        "by_signals:block_influence", "the layer that turns the states most", "block-influence", "arXiv 2403.03853"
    ),
    "variability": Selector(
        "by_signals:variability",
        "the space whose classes spread least relative to their distance",
        "variability",
        "arXiv 2210.10041",
    ),
    "grad-norm": Selector(
        "by_signals:grad_norm",
        "where the retained share of relative gradient norms most exceeds the share of the cost",
        "grad-norm",
        "arXiv 2210.11466",
    ),
    "spectrum": Selector(
        "by_signals:spectrum",
        "where the retained share of the weights' signal-to-noise ratios most exceeds the share of the cost",
        "spectrum",
        "arXiv 2406.06623",
    ),
    "full": Selector("choice:full", "none: all layers train (baseline)"),
    "none": Selector("choice:none", "the last layer: only the final norm trains, and an untied head (baseline)"),
    "last-n": Selector("choice:last_n", "the layer below the last plan.last_n (baseline)"),
    "first-n": Selector("choice:first_n", "none: the first plan.first_n layers train (a control, only as a method)"),
    "random": Selector("choice:draw", "a random layer (baseline)"),
    "oracle": Selector("choice:oracle", "plan.oracle, a boundary that was measured to be the best"),
}

if TYPE_CHECKING:
    SelectorName = str
    SignalKind = str
else:
    SelectorName = Literal[tuple(SELECTORS)]
    SignalKind = Literal[tuple(SIGNALS)]
