"""What the mean over the test split does not show: other domains, groups, unwanted answers, shift from the base."""

from collections.abc import Callable
from functools import partial

from salf.metrics import BASELINES, SCORES, GroupPanels, Interval, KeptContext, Panel
from stages.report.artifacts import Artifacts
from stages.report.figures import curves
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.quality import label_shares
from stages.report.wording import count, decimal, percent, signed, span


def beyond_section(artifacts: Artifacts) -> Section | None:
    """A table of every panel, and figures; ``None`` where none was asked for."""
    metrics = artifacts.metrics
    if not metrics or not (metrics.shifted or metrics.groups or metrics.pairs or metrics.shift or metrics.kept):
        return None
    section = Section("beyond", "Beyond the mean", "Other domains, groups, unwanted answers, shift from the base")
    for name, panel in metrics.shifted.items():
        shares = label_shares(artifacts.meta, name)
        label = max(shares, key=lambda one: shares[one]) if shares else ""
        most = f" Its most frequent label, {label}, is right for {percent(shares[label], 1)}." if shares else ""
        section.sentences.append(f"{name}: {count(panel.examples)} examples.{most}")
        section.tables.append(_panel(artifacts, f"shifted-{name}", f"Scores on {name}.", panel, metrics.quality))
    for split, found in metrics.groups.items():
        few = f" Groups of too few examples are pooled: {', '.join(found.pooled)}." if found.pooled else ""
        section.sentences.append(f"{split} by {found.column}: {len(found.groups)} groups.{few}")
        rates = f" Rates are those of the label {found.positive}." if found.positive else ""
        caption = f"Gaps on {split}: the highest group minus the lowest. Of many groups some differ by chance.{rates}"
        section.tables.append(_panel(artifacts, f"gaps-{split}", caption, found.gaps, metrics.quality))
        section.tables.append(_by_group(artifacts, split, found, metrics.quality))
    if pairs := metrics.pairs:
        caption = (
            f"{count(pairs.examples)} pairs of {pairs.file}: how often the unwanted continuation is more probable per "
            "character than the wanted one, and its margin in nats per character."
        )
        lead = "unwanted_margin"
        section.tables.append(_panel(artifacts, "pairs", caption, pairs, lead))
        section.figures += _by_depth_and_rank(artifacts, "pairs", pairs, lead, "margin of unwanted answers")
    for at, (text, shift) in enumerate(metrics.shift.items()):
        name, what = f"shift-{at}", f"KL from the base on {text}"
        caption = f"KL divergence in nats per token on {count(shift.examples)} examples of {text}, both ways."
        section.tables.append(_panel(artifacts, name, caption, shift, "kl_from_base"))
        lines = {method: (method, list(enumerate(layers))) for method, layers in shift.layers.items()}
        section.figures.append(curves(f"fig-{name}-layers", f"{what}, by layer", ("layer", "nats"), lines))
        section.figures += _by_depth_and_rank(artifacts, name, shift, "kl_from_base", what)
    section.tables += [_kept(name, found) for name, found in metrics.kept.items()]
    return section


def _kept(run: str, found: KeptContext) -> Table:
    """The first test text as the layers of a pruned model still see it at its end."""
    rows: list[list[Cell | str]] = [["The text", "", "".join(found.tokens)]]
    for layer, flags in found.kept.items():
        seen = "".join(token if flag == "1" else "·" for token, flag in zip(found.tokens, flags, strict=True))
        rows.append([f"Layer {layer}", number(found.layers[layer], percent), seen])
    caption = f"{run}: {percent(found.share)} of the context is kept, mean over trained layers and test texts."
    caption += " What each layer still sees at the end of the first text: a dot is a dropped token."
    return Table(f"kept-{run}", caption, ("Layer", "Context kept", "Tokens"), rows, folded=True)


def _panel(artifacts: Artifacts, name: str, caption: str, panel: Panel, lead: str) -> Table:
    """Every measure of a panel, and differences in the ``lead``."""
    models = panel.models

    def score(measure: str, model: str) -> Cell:
        return _cell(models[model].scores.get(measure))

    columns: Columns[str] = {"Model": str}
    for measure in sorted({measure for one in models.values() for measure in one.scores}):
        columns[SCORES.get(measure, measure.replace("_", " ")).capitalize()] = partial(score, measure)
    columns["Against full"] = lambda model: _cell(models[model].minus_full.get(lead), signed)
    columns["Against the untrained model"] = lambda model: _cell(models[model].minus_base.get(lead), signed)
    columns["Share of full’s change"] = lambda model: _cell(models[model].share_of_full.get(lead))
    words = f"{caption} Paired differences, and the share of full’s change if that is significant, are in the "
    return table(name, words + f"{SCORES.get(lead, lead.replace('_', ' '))}.", _models(artifacts, panel), columns)


def _by_group(artifacts: Artifacts, split: str, found: GroupPanels, quality: str) -> Table:
    def score(model: str, group: str) -> Cell:
        return _cell(found.groups[group].models[model].scores.get(quality))

    columns: Columns[str] = {"Group": str, "Examples": lambda group: number(found.groups[group].examples, count)}
    columns |= {model: partial(score, model) for model in _models(artifacts, found.gaps)}
    return table(f"groups-{split}", f"{SCORES[quality].capitalize()} by group on {split}.", found.groups, columns)


def _by_depth_and_rank(artifacts: Artifacts, name: str, panel: Panel, measure: str, what: str) -> list[Figure]:
    """A measure of the methods against the last frozen layer, and against the rank where ranks differ."""
    values = {model: one.scores[measure].value for model, one in panel.models.items()}
    depths = {m.name: float(m.record.boundary) for m in artifacts.methods}
    runs = [run for run in artifacts.runs.values() if "lora" in run.how.words]
    ranks = {run.label: float(run.params.finetune.lora_rank) for run in runs}
    figures = []
    for words, places in (("last frozen layer", depths), ("rank", ranks)):
        dots = {model: (model, [(places[model], value)]) for model, value in values.items() if model in places}
        if len({places[model] for model in dots}) > 1:
            title = f"{what[0].upper()}{what[1:]}, by {words}"
            figures.append(curves(f"fig-{name}-{words.split()[-1]}", title, (words, "nats"), dots))
    return figures


def _models(artifacts: Artifacts, panel: Panel) -> list[str]:
    """The methods in the page's order, then the baselines."""
    return [name for name in (*(m.name for m in artifacts.methods), *BASELINES) if name in panel.models]


def _cell(found: Interval | None, write: Callable[[float], str] = decimal) -> Cell:
    return number(found.value, write, span(found)) if found else number(None)
