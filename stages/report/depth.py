"""The sections over depth: the trace, the fitted laws, and the gain of every layer."""

from typing import Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from salf.evidence import DepthLaw, FittedLaw, Numbers
from salf.plan import FreezePlan
from salf.selectors import GAINS
from stages.common.figures import ACCENT, GROUND, INK, MUTED
from stages.report.artifacts import Artifacts
from stages.report.figures import DASHED, figure
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.wording import compact, count, decimal, percent

_UNITS: Final = {"deviation": "deviation", "loss": "loss (nats)"}
_NO_LAW: Final = "No trace has been fitted: run dvc repro fit."


def trace_section(artifacts: Artifacts) -> Section:
    """Deviation and loss against depth."""
    section = Section("trace", "The trace", "The trace: how far each space is from the answer")
    law = artifacts.law
    if law is None:
        section.sentences.append(_NO_LAW)
        return section
    traced = law.trace
    section.sentences.append(
        f"{count(law.examples)} training examples, {count(law.positions)} answer positions, "
        f"{law.layers + 1} latent spaces; {traced.space or 'normed'} hidden states, "
        f"{traced.target or 'output'} target, {traced.dtype or 'unknown'} arithmetic."
    )
    if "loss" not in law.quantities:
        section.sentences.append("No losses were traced (trace.losses: 0), so only the deviation is shown.")
    section.figures += [
        _trace_figure(quantity, found, artifacts.plan.boundary, law.confidence)
        for quantity, found in law.quantities.items()
    ]
    return section


def law_section(artifacts: Artifacts) -> Section:
    """The laws, how well they fit, and the verdict."""
    section = Section("law", "Scaling law", "The scaling law over depth")
    law = artifacts.law
    if law is None:
        section.sentences.append(_NO_LAW)
        return section
    for quantity, found in law.quantities.items():
        section.sentences.append(f"{quantity.capitalize()}: {found.verdict}{_falling_words(found)}")
        section.figures.append(_law_figure(quantity, found))
        section.tables.append(_law_table(quantity, found, law.confidence))
    return section


def _falling_words(found: DepthLaw) -> str:
    """The verdict on the law from the peak on, which selector salf-law follows."""
    if found.falling is None:
        return ""
    faults = f"does not fit: {'; '.join(found.falling.faults)}" if found.falling.faults else "fits"
    return f" From the curve’s peak on, at layer {found.falling.first_space}, the power law {faults}."


def gains_section(artifacts: Artifacts) -> Section:
    """The gain of every layer, and the chosen boundary."""
    section = Section("gains", "Gain per layer", "What each layer gains")
    gains, plan, law = artifacts.gains, artifacts.plan, artifacts.law
    if gains is None or gains.empty:
        section.sentences.append("No gains have been computed: run dvc repro fit.")
        return section
    found = law.quantities.get(plan.quantity) if law else None
    amount = f" ({decimal(found.embedding_step)} in {plan.quantity})" if found else ""
    section.sentences.append(
        f"The step from the embedding to layer 1{amount} is not a layer’s gain and never eligible, so the figures "
        "leave it out. The last layer is shown but cannot be the last frozen layer: nothing would be left to train."
    )
    mine = (gains.quantity == plan.quantity) & (gains.gain == plan.gain) & (gains.layer > 1) & gains.value.notna()
    chosen = gains[mine].sort_values("layer")
    if not chosen.empty:
        section.figures.append(_gains_figure(chosen, plan))
    return section


def _trace_figure(quantity: str, found: DepthLaw, boundary: int, confidence: float) -> Figure:
    layers, mean = len(found.mean) - 1, found.mean

    def paint(axes: Axes) -> None:
        spaces = range(layers + 1)
        axes.fill_between(spaces, found.p10, found.p90, color=ACCENT, alpha=0.16, linewidth=0)
        axes.fill_between(spaces, found.low, found.high, color=ACCENT, alpha=0.45, linewidth=0)
        axes.plot(spaces, mean, color=ACCENT, linewidth=2)
        _depth(axes, layers, _UNITS[quantity], "after layer (0: embedding)")
        axes.axvline(boundary, color=INK, **DASHED)
        low, high = axes.get_xlim()
        right = (boundary - low) / (high - low) > 0.72
        text = "frozen up to here " if right else " frozen up to here"
        over, side = axes.get_xaxis_transform(), "right" if right else "left"
        axes.text(boundary, 0.97, text, transform=over, ha=side, va="top", color=INK, bbox=GROUND)

    title = f"The {quantity}: {decimal(mean[1], 2)} after layer 1, {decimal(mean[-1], 2)} after layer {layers}"
    caption = (
        f"Line: mean; dark band: its {percent(confidence)} interval; light band: p10–p90 of examples; dashed line: the "
        f"last frozen layer, {boundary}."
    )
    return figure(f"fig-trace-{quantity}", title, caption, paint)


def _law_figure(quantity: str, found: DepthLaw) -> Figure:
    best = next((law for law in found.laws if law.name == found.best and found.fits), None)
    rivals = [law for law in found.laws if law is not best and law.name != "constant"]
    mean, low, high = (np.array(values[1:]) for values in (found.mean, found.low, found.high))

    def paint(axes: Axes) -> None:
        spaces = range(1, len(mean) + 1)
        for rival in rivals:
            axes.plot(spaces, _array(rival.curve), color=MUTED, linewidth=1, alpha=0.7, linestyle=(0, (4, 2)))
        if best is not None:
            band = _array(best.curve_low), _array(best.curve_high)
            axes.fill_between(spaces, *band, color=ACCENT, alpha=0.25, linewidth=0)
            axes.plot(spaces, _array(best.curve), color=ACCENT, linewidth=2)
        if found.falling is not None:
            axes.plot(spaces, _array(found.falling.curve), color=INK, linewidth=1.2)
        errors = np.maximum([mean - low, high - mean], 0.0)
        axes.errorbar(spaces, mean, yerr=errors, fmt="o", color=INK, markersize=3.2, elinewidth=1)
        margin = 0.15 * (high.max() - low.min() or 1.0)
        axes.set_ylim(low.min() - margin, high.max() + margin)  # a rival far off must not flatten the measured values
        _depth(axes, len(mean), _UNITS[quantity], "after layer", first=1)

    title = f"The {_plain(found.best or '')} describes the {quantity} best"
    title = title if found.fits else f"No law describes the {quantity} well"
    caption = "Points: means with intervals; line and band: the best law and its interval; dashed: the other laws."
    caption += " Thin line: the power law from the peak on." * (found.falling is not None)
    return figure(f"fig-law-{quantity}", title, caption, paint)


def _plain(name: str) -> str:
    return f"{name.replace('_', ' ')} law"


def _law_table(quantity: str, found: DepthLaw, confidence: float) -> Table:
    best = found.best if found.fits else None
    columns: Columns[FittedLaw] = {
        "Law": lambda law: Cell(_plain(law.name), law.formula, mark="best" if law.name == best else ""),
        "Parameters": lambda law: Cell(_estimates(law), mark="lines"),
        "AICc": lambda law: number(law.aicc, lambda value: decimal(value, 1)),
        "R²": lambda law: number(law.r2, decimal),
        "RMSE": lambda law: number(law.rmse, compact),
        "Error on held-out layers": lambda law: number(law.holdout_rmse, compact),
        "From layer": lambda law: number(law.first_space, count),
    }
    caption = (
        f"Laws of the {quantity} compared: lower AICc and error are better. Brackets: {percent(confidence)} intervals "
        "over resampled examples. AICc judges every law on all layers, R² and RMSE from the layer on where it holds; "
        "the power law from the peak on is judged on these layers alone."
    )
    return table(f"laws-{quantity}", caption, [*found.laws, *filter(None, [found.falling])], columns)


def _estimates(law: FittedLaw) -> str:
    parts = []
    for name, value in law.parameters.items():
        low, high = (law.intervals.get(name) or [None, None])[:2]
        bounds = f" [{compact(low)}, {compact(high)}]" if low is not None else ""
        parts.append(f"{name} = {compact(value)}{bounds}")
    text = "\n".join(parts)
    return text if law.converged else f"{text} (did not converge)".strip()


def _gains_figure(rows: pd.DataFrame, plan: FreezePlan) -> Figure:
    """A bar per layer with its interval, that of the last frozen layer in colour."""
    layers, what = plan.model.layers, GAINS[plan.gain]
    eligible = rows[rows.layer < layers].set_index("layer").value

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=MUTED, linewidth=0.8)
        chosen = rows.layer == plan.boundary
        for ink, fade, mine in ((MUTED, 0.55, rows[~chosen]), (ACCENT, 1.0, rows[chosen])):
            axes.bar(list(mine.layer), list(mine.value), width=0.72, color=ink, alpha=fade, linewidth=0)
        axes.vlines(list(rows.layer), rows.low, rows.high, color=INK, linewidth=0.9)
        _depth(axes, layers, what, "layer", first=1)
        axes.set_xlim(0.3, layers + 0.7)

    caption = f"A bar per layer with its interval; in colour: the last frozen layer, {plan.boundary}."
    title = f"The {what} in {plan.quantity} is largest at layer {eligible.idxmax()}"
    return figure("fig-gain-chosen", title, caption, paint, height=220)


def _array(values: Numbers) -> NDArray[np.floating]:
    """Numbers with NaN for null."""
    return np.array(values, dtype=float)


def _depth(axes: Axes, layers: int, what: str, below: str, first: int = 0) -> None:
    axes.set(xlabel=below, ylabel=what, xlim=(first - 0.5, layers + 0.5))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=3))
