"""What the mean over the test split does not show: other domains, groups, unwanted answers, shift from the base."""

from stages.report.artifacts import Artifacts
from stages.report.parts import Section
from stages.report.quality import in_prose, label_shares, scores_table
from stages.report.wording import count, percent


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
