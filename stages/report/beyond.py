"""What the mean over the test split does not show: other domains, groups, unwanted answers, shift from the base."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from salf.metrics import BASELINES, SCORES, Groups, Interval, Paired
from stages.report.artifacts import Artifacts
from stages.report.figures import dots, layer_lines
from stages.report.parts import Cell, Columns, Figure, Section, Table, number, table
from stages.report.quality import in_prose, label_shares, scores_table
from stages.report.wording import count, decimal, percent, signed, span


def shifted_section(artifacts: Artifacts) -> Section | None:
    """Scores on every shifted split; ``None`` without any."""
    metrics = artifacts.metrics
    if not metrics or not metrics.shifted:
        return None
    section = Section("shifted", "Other domains", "Quality on shifted test splits")
    for name, scored in metrics.shifted.items():
        plain = in_prose(scored.baselines)
        examples = next(iter(scored.baselines.values())).n
        words = f"{name}: {count(examples)} examples."
        if shares := label_shares(artifacts.meta, name):
            label = max(shares, key=lambda one: shares[one])
            words += f" Always answering its most frequent label, {label}, is right for {percent(shares[label], 1)}."
        section.sentences.append(words)
        caption = f"Scores on {name} with their intervals."
        section.tables.append(scores_table(f"shifted-{name}", caption, scored.methods, plain, artifacts.metric))
    return section


def groups_section(artifacts: Artifacts) -> Section | None:
    """Scores by subgroup on every test split that has any; ``None`` without."""
    metrics = artifacts.metrics
    if not metrics or not metrics.groups:
        return None
    section = Section("groups", "Groups", "Who is served worse")
    for split, found in metrics.groups.items():
        few = f" Groups of too few examples are pooled: {', '.join(found.pooled)}." if found.pooled else ""
        section.sentences.append(f"{split} by {found.column}: {len(found.sizes)} groups.{few}")
        models = _models(artifacts, found.gaps)
        section.tables.append(_gaps_table(split, found, models, metrics.quality))
        section.tables.append(_groups_table(split, found, models, metrics.quality))
    return section


def pairs_section(artifacts: Artifacts) -> Section | None:
    """How often and by how much models prefer unwanted continuations; ``None`` where no pairs were read."""
    found = artifacts.metrics.pairs if artifacts.metrics else None
    if not found:
        return None
    section = Section("pairs", "Unwanted answers", "Unwanted answers")
    section.sentences.append(
        f"{count(found.pairs)} pairs of {found.file}. A margin above zero prefers the unwanted continuation."
    )
    margin, models = "unwanted_margin", _models(artifacts, found.models)
    columns: Columns[str] = {"Model": str, **score_columns(found.models)}
    columns["Against full"] = lambda name: _cell(found.models[name].minus_full.get(margin), signed)
    columns["Against the untrained model"] = lambda name: _cell(found.models[name].minus_base.get(margin), signed)
    columns["Share of full’s change"] = partial(_share, found.models, margin)
    caption = (
        "Share of pairs whose unwanted continuation is the more probable one per character, and its margin in nats per "
        "character. Against others, and as a share of full fine-tuning’s change where that is significant: the margin."
    )
    section.tables.append(table("pairs", caption, models, columns))
    section.figures += _against_depth_and_rank(artifacts, found.models, margin, "margin of unwanted answers")
    return section


def shift_section(artifacts: Artifacts) -> Section | None:
    """How far the methods' predictions are from the untrained model's; ``None`` where that was not measured."""
    metrics = artifacts.metrics
    if not metrics or not metrics.shift:
        return None
    section = Section("shift", "Shift", "How far predictions moved from the base’s")
    for text, found in metrics.shift.items():
        place = text.replace(" ", "-")
        models = [name for name in _models(artifacts, found.models) if name != "untrained"]
        columns: Columns[str] = {"Method": str, **score_columns(found.models)}
        columns["Share of full’s"] = partial(_share, found.models, "kl_from_base")
        caption = (
            f"KL divergence per token on {count(found.examples)} examples of {text}, in nats: of the method’s "
            "predictions from the untrained model’s, and the other way round. Answer-side methods count the tokens "
            "after the prompts’ data alone and are not compared with full."
        )
        section.tables.append(table(f"shift-{place}", caption, models, columns))
        section.figures.append(layer_lines(f"fig-shift-{place}", text, found.layers))
        what = f"KL from the base on {text}, nats"
        section.figures += _against_depth_and_rank(artifacts, found.models, "kl_from_base", what, place)
    return section


def _against_depth_and_rank(
    artifacts: Artifacts, models: Mapping[str, Paired], measure: str, what: str, place: str = ""
) -> list[Figure]:
    """A measure of the methods against the last frozen layer, and against the rank where ranks differ."""
    methods = {m.name: m for m in artifacts.methods if m.name in models}
    scores = {name: models[name].scores[measure] for name in methods}
    depths = {name: (float(m.record.boundary), scores[name]) for name, m in methods.items()}
    ranks = {
        run.label: (float(run.params.finetune.lora_rank), scores[run.label])
        for run in artifacts.runs.values()
        if run.label in scores and "lora" in run.how.words
    }
    title, name = f"{what[0].upper()}{what[1:]}", f"fig-{measure.replace('_', '-')}{place and '-'}{place}"
    figures = [dots(f"{name}-depth", f"{title} by depth of freezing", what, "last frozen layer", depths)]
    if len({rank for rank, _ in ranks.values()}) > 1:
        figures.append(dots(f"{name}-rank", f"{title} by rank", what, "rank", ranks, logarithmic=True))
    return figures


def _gaps_table(split: str, found: Groups, models: Sequence[str], quality: str) -> Table:
    def worst(name: str) -> Cell:
        group = found.worst[name]
        return Cell(group, decimal(found.by_group[group][name].scores[quality].value))

    columns: Columns[str] = {"Model": str, "Worst group": worst}
    columns |= score_columns(found.gaps)
    columns["Against full"] = lambda name: _cell(found.gaps[name].minus_full.get(quality), signed)
    columns["Against the untrained model"] = lambda name: _cell(found.gaps[name].minus_base.get(quality), signed)
    rates = f" Rates are those of the label {found.positive}." if found.positive else ""
    caption = (
        f"Gaps between groups on {split}: highest minus lowest, with intervals over the examples of these two groups."
        f"{rates} Against others: the paired difference in the gap of {SCORES[quality]}. Of many groups some differ by "
        "chance alone."
    )
    return table(f"gaps-{split}", caption, models, columns)


def _groups_table(split: str, found: Groups, models: Sequence[str], quality: str) -> Table:
    def score(name: str, group: str) -> Cell:
        return _cell(found.by_group[group][name].scores.get(quality))

    columns: Columns[str] = {"Group": str, "Examples": lambda group: number(found.sizes[group], count)}
    columns |= {name: partial(score, name) for name in models}
    caption = f"{SCORES[quality].capitalize()} by group on {split}."
    return table(f"groups-{split}", caption, sorted(found.sizes), columns)


def score_columns(held: Mapping[str, Paired]) -> Columns[str]:
    """A column per measure that any model has."""

    def score(measure: str, name: str) -> Cell:
        return _cell(held[name].scores.get(measure))

    measures = sorted({measure for one in held.values() for measure in one.scores})
    words = {measure: SCORES.get(measure, measure.replace("_", " ")).capitalize() for measure in measures}
    return {words[measure]: partial(score, measure) for measure in measures}


def _models(artifacts: Artifacts, held: Collection[str]) -> list[str]:
    """The methods in the page's order, then the baselines."""
    return [*(m.name for m in artifacts.methods if m.name in held), *(name for name in BASELINES if name in held)]


def _share(models: Mapping[str, Paired], measure: str, name: str) -> Cell:
    return _cell(models[name].share_of_full.get(measure))


def _cell(found: Interval | None, write: Callable[[float], str] = decimal) -> Cell:
    return number(found.value, write, span(found)) if found else number(None)
