"""The sections over depth: the trace, the fitted laws, the gain of every layer."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from salf.selectors import OF_THE_POWER_LAW
from stages.report import depth_figures
from stages.report.artifacts_in import Artifacts, Json
from stages.report.depth_figures import Bars, LawCurve, profile_of
from stages.report.stability import add_stability
from stages.report.tables import Cell, Figure, Section, Table, columns, number_cell
from stages.report.wording import compact, count, decimal, number, percent

QUANTITIES: Final = {"deviation": "deviation", "loss": "loss (nats)"}
_NO_LOSS: Final = "No losses were traced (trace.losses: 0), so only the deviation is shown."
_NO_LAW: Final = "No trace has been fitted: run dvc repro fit."
_LAW_NAMES: Final = {
    "power": "power law",
    "power_tail": "power law over the tail",
    "broken_power": "broken power law",
    "isotonic": "no law: monotone steps",
    "constant": "no law: constant",
}
_GAINS: Final = {
    "observed": "observed gain",
    "ratio": "gain over the law’s gain",
    "local": "local-law gain",
    "marginal": "marginal gain of the law",
}


def trace_section(artifacts: Artifacts) -> Section:
    """Deviation and loss against depth."""
    section = Section("trace", "The trace", "The trace: how far each space is from the answer")
    law = artifacts.law
    if law is None:
        section.sentences.append(_NO_LAW)
        return section
    record = law.get("trace", {})
    section.sentences.append(
        f"{count(law.get('examples'))} training examples, {count(law.get('positions'))} answer positions, "
        f"{law['layers'] + 1} latent spaces; {record.get('space', 'normed')} hidden states, "
        f"{record.get('target', 'output')} target, {record.get('dtype', 'unknown')} arithmetic."
    )
    if "loss" not in law["quantities"]:
        section.sentences.append(_NO_LOSS)
    for quantity, found in _quantities(law):
        title = _trace_title(quantity, found, law["layers"])
        svg = depth_figures.trace(
            f"fig-trace-{quantity}", title, QUANTITIES[quantity], profile_of(found), artifacts.plan.boundary
        )
        caption = (
            f"Line: mean; dark band: its {percent(law.get('confidence'))} interval; light band: p10–p90 of examples."
        )
        section.figures.append(Figure(title, svg, caption))
    return section


def law_section(artifacts: Artifacts) -> Section:
    """The laws, how well they fit, and the verdict."""
    section = Section("law", "Scaling law", "The scaling law over depth")
    law = artifacts.law
    if law is None:
        section.sentences.append(_NO_LAW)
        return section
    for quantity, found in _quantities(law):
        section.sentences.append(f"{quantity.capitalize()}: {found['verdict']}")
        title = _law_title(quantity, found)
        best = next((entry for entry in found["laws"] if entry["name"] == found["best"]), None)
        rivals = [_curve(e) for e in found["laws"] if (e is not best or not found["fits"]) and e["name"] != "constant"]
        svg = depth_figures.law(
            f"fig-law-{quantity}",
            title,
            QUANTITIES[quantity],
            profile_of(found),
            _curve(best) if best and found["fits"] else None,
            rivals,
        )
        section.figures.append(
            Figure(title, svg, "Points: means with intervals; line and band: best law; dashed: others.")
        )
        section.tables.append(_law_table(quantity, found, law.get("confidence")))
    return section


def gains_section(artifacts: Artifacts) -> Section:
    """The gain of every layer, the chosen boundary, and how often each layer wins."""
    section = Section("gains", "Gain per layer", "What each layer gains")
    gains, plan = artifacts.gains, artifacts.plan
    if gains is None or gains.empty:
        section.sentences.append("No gains have been computed: run dvc repro fit.")
        return section
    section.sentences.append(_embedding_words(plan.quantity, artifacts.law))
    chosen = _rows(gains, plan.quantity, plan.gain)
    if not chosen.empty:
        layer, _ = _largest(chosen, "value", plan.model.layers)
        title = f"The {_GAINS[plan.gain]} in {plan.quantity} is largest at layer {layer}"
        svg = _bars("fig-gain-chosen", title, _GAINS[plan.gain], chosen, artifacts)
        section.figures.append(
            Figure(title, svg, "The plan’s gain. Coloured: the last frozen layer. Strokes: interval.")
        )
        section.figures.append(_wins(chosen, artifacts))
    add_stability(section, artifacts)
    others: list[tuple[str, str]] = [(plan.quantity, gain) for gain in _GAINS if gain != plan.gain]
    others += [(quantity, "observed") for quantity in QUANTITIES if quantity != plan.quantity]
    section.figures += [f for quantity, gain in others if (f := _other_gain(gains, quantity, gain, artifacts))]
    return section


def _quantities(law: Json) -> list[tuple[str, Json]]:
    return [(name, law["quantities"][name]) for name in QUANTITIES if name in law["quantities"]]


def _trace_title(quantity: str, found: Json, layers: int) -> str:
    mean = found["mean"]
    moved = "falls" if mean[layers] < mean[1] else "does not fall"
    half = _half_way(mean)
    where = f", half of the fall after layer {half}" if half is not None else ""
    ends = f"{decimal(mean[1], 2)} after layer 1, {decimal(mean[layers], 2)} after layer {layers}"
    return f"The {quantity} {moved}: {ends}{where}"


def _half_way(mean: list[float]) -> int | None:
    """The last space at which more than half of the reduction from space 1 to L is still to come."""
    reduction = mean[1] - mean[-1]
    if reduction <= 0:
        return None
    return max(k for k in range(1, len(mean)) if mean[k] - mean[-1] > reduction / 2)


def _law_title(quantity: str, found: Json) -> str:
    if not found["fits"]:
        return f"No law describes the {quantity} well"
    name = _plain(found["best"])
    return f"{'An' if name[0] in 'aeiou' else 'A'} {name} describes the {quantity} best"


def _plain(name: str) -> str:
    return _LAW_NAMES.get(name, f"{name} law")


def _curve(entry: Mapping[str, Any]) -> LawCurve:
    absent = [None] * len(entry["curve"])
    return LawCurve(entry["name"], entry["curve"], entry.get("curve_low") or absent, entry.get("curve_high") or absent)


def _law_table(quantity: str, found: Json, confidence: float | None) -> Table:
    headings = ("Law", "Parameters", "AICc", "R²", "RMSE", "Error on held-out layers", "From layer")
    rows = [
        [
            Cell(_plain(entry["name"]), entry.get("formula", ""), mark=_mark(entry, found)),
            Cell(_estimates(entry), mark="lines"),
            number_cell(number(entry.get("aicc")), decimal(number(entry.get("aicc")), 1)),
            number_cell(number(entry.get("r2")), decimal(number(entry.get("r2")))),
            number_cell(number(entry.get("rmse")), compact(number(entry.get("rmse")))),
            number_cell(number(entry.get("holdout_rmse")), compact(number(entry.get("holdout_rmse")))),
            number_cell(number(entry.get("first_space")), count(number(entry.get("first_space")))),
        ]
        for entry in found["laws"]
    ]
    caption = (
        f"Laws of the {quantity} compared: lower AICc and error are better. Brackets: {percent(confidence)} intervals "
        "over resampled examples. AICc judges every law on all layers, R² and RMSE from the layer on where it holds."
    )
    return Table(f"laws-{quantity}", caption, columns(headings, words=2), rows)


def _mark(entry: Mapping[str, Any], found: Json) -> str:
    return "best" if found["fits"] and entry["name"] == found["best"] else ""


def _estimates(entry: Mapping[str, Any]) -> str:
    parts = []
    for name, value in entry.get("parameters", {}).items():
        low, high = (entry.get("intervals", {}).get(name) or [None, None])[:2]
        bounds = f" [{compact(number(low))}, {compact(number(high))}]" if low is not None else ""
        parts.append(f"{name} = {compact(number(value))}{bounds}")
    text = "\n".join(parts)
    return text if entry.get("converged", True) else f"{text} (did not converge)".strip()


def _rows(gains: pd.DataFrame, quantity: str, gain: str) -> pd.DataFrame:
    """The layers of one gain, those with a value; layer 1 holds the embedding step."""
    mask = (gains["quantity"] == quantity) & (gains["gain"] == gain) & (gains["layer"] > 1) & gains["value"].notna()
    return gains[mask].sort_values("layer")


def _bars(name: str, title: str, what: str, rows: pd.DataFrame, artifacts: Artifacts) -> str:
    data = Bars(
        [int(layer) for layer in rows["layer"]], _column(rows, "value"), _column(rows, "low"), _column(rows, "high")
    )
    return depth_figures.bars(name, title, what, data, artifacts.plan.boundary, artifacts.plan.model.layers)


def _other_gain(gains: pd.DataFrame, quantity: str, gain: str, artifacts: Artifacts) -> Figure | None:
    rows = _rows(gains, quantity, gain)
    if rows.empty:
        return None
    layer, _ = _largest(rows, "value", artifacts.plan.model.layers)
    title = f"By the {_GAINS[gain]} in {quantity}, layer {layer} would win"
    svg = _bars(f"fig-gain-{quantity}-{gain}", title, _GAINS[gain], rows, artifacts)
    return Figure(title, svg, _law_words(quantity, gain, artifacts.law))


def _law_words(quantity: str, gain: str, law: Mapping[str, Any] | None) -> str:
    """Of a gain that rests on the power law over the whole depth, whether that law fits."""
    laws = (law or {}).get("quantities", {}).get(quantity, {}).get("laws", [])
    if gain not in OF_THE_POWER_LAW or any(one["name"] == "power" and one["fits"] for one in laws):
        return ""
    return f"No selector uses it here: it needs the power law over the whole depth, which does not fit the {quantity}."


def _wins(rows: pd.DataFrame, artifacts: Artifacts) -> Figure:
    plan = artifacts.plan
    layer, value = _largest(rows, "win_share", plan.model.layers)
    title = f"Layer {layer} wins in {percent(value)} of the resamples"
    data = Bars([int(layer) for layer in rows["layer"]], _column(rows, "win_share"))
    svg = depth_figures.bars("fig-wins", title, "share of resamples won", data, plan.boundary, plan.model.layers)
    return Figure(title, svg, "How often each layer has the largest gain when the traced examples are resampled.")


def _embedding_words(quantity: str, law: Json | None) -> str:
    step = number((law or {}).get("quantities", {}).get(quantity, {}).get("embedding_step"))
    amount = f" ({decimal(step)} in {quantity})" if step is not None else ""
    step_words = f"The step from the embedding to layer 1{amount}"
    last = "The last layer is shown but cannot be the last frozen layer: nothing would be left to train."
    return f"{step_words} is not a layer’s gain and never eligible, so the figures leave it out. {last}"


def _largest(rows: pd.DataFrame, column: str, layers: int) -> tuple[int, float | None]:
    """The layer before the last with the largest value of a column, the shallower of two, and that value."""
    first = rows[rows["layer"] < layers].sort_values([column, "layer"], ascending=[False, True]).to_dict("records")[0]
    return int(first["layer"]), number(first[column])


def _column(rows: pd.DataFrame, name: str) -> list[float | None]:
    return [number(value) for value in rows[name]] if name in rows else [None] * len(rows)
