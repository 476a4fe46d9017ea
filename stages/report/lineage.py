"""Which artifact was made from which: the hash that each one keeps of its inputs, compared with the files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from salf.files import digest_of
from stages.report.artifacts_in import Artifacts
from stages.report.lineage_figure import Arrow, Box, lineage_figure
from stages.report.tables import Cell, Figure, Section, Table, columns
from stages.report.wording import ABSENT, count

SHORT: Final = 8  # characters of a hash in the figure; the table has all of them


class Verdict(Enum):
    """Whether a recorded hash is that of the artifact it names."""

    AGREES = "agrees"
    DIFFERS = "differs"
    MISSING = "not there to compare"
    UNRECORDED = "no hash kept"

    @property
    def broken(self) -> bool:
        """Whether the reader was made from something other than the present artifact."""
        return self in (Verdict.DIFFERS, Verdict.MISSING)


@dataclass(frozen=True)
class Link:
    """One artifact read by another.

    Attributes:
        source: key of what was read (``base``, ``prepared``, ``traces``, ``law``, ``gains``, ``plan``, ``models``).
        target: key of what was made from it.
        reader: the file or run that keeps the hash.
        what: the part that was read.
        recorded: SHA-256 that the reader keeps; ``None`` where it keeps none.
        found: SHA-256 of the present artifact; ``None`` if it is missing.
    """

    source: str
    target: str
    reader: str
    what: str
    recorded: str | None
    found: str | None

    @property
    def verdict(self) -> Verdict:
        """Agreement of both hashes."""
        if self.recorded is None:
            return Verdict.UNRECORDED
        if self.found is None:
            return Verdict.MISSING
        return Verdict.AGREES if self.recorded == self.found else Verdict.DIFFERS


def lineage_section(artifacts: Artifacts) -> Section:
    """The graph of artifacts, in a sentence, a figure and a table."""
    section = Section("lineage", "Lineage", "What was made from what")
    found = links(artifacts)
    section.sentences += _sentences(found)
    figure = lineage_figure(
        "lineage-graph", "Every artifact and what it was made from", boxes(artifacts), _arrows(found)
    )
    section.figures.append(
        Figure(
            "Every artifact and what it was made from",
            figure,
            f"The first {SHORT} characters of each SHA-256. Solid: the hash that the reader keeps is that of the "
            "present artifact. Dashed: the reader keeps no hash, dvc.lock does. "
            "Coloured with ≠: the reader was made from something else.",
        )
    )
    section.tables.append(_table(found))
    return section


def links(artifacts: Artifacts) -> list[Link]:
    """Every reading of one artifact by another, in the order of the chain."""
    weights, digests = artifacts.base["weights_sha256"], artifacts.digests
    found = []
    if (trace := artifacts.trace) is not None:
        found += [
            Link("base", "traces", "trace", "weights", trace.get("weights_sha256"), weights),
            Link("prepared", "traces", "trace", "train split", trace.get("data_sha256"), digests.get("train")),
        ]
    if artifacts.law is not None:
        recorded = artifacts.law.get("trace_sha256")
        found.append(Link("traces", "law", "scaling_law.json", "traces", recorded, digests.get("traces")))
    if artifacts.gains is not None:
        found.append(Link("traces", "gains", "gains.csv", "traces", None, digests.get("traces")))
    found += _of_the_plan(artifacts)
    for name, run in artifacts.runs.items():
        found += _of_a_run(name, run, weights, digests)
    return found + list(_of_the_metrics(artifacts))


def model_hash(run: Mapping[str, Any]) -> str | None:
    """One hash for all shards of a fine-tuned model, as ``base.json`` has one for the base model's."""
    return digest_of(run["shards"]) if run.get("shards") else None


def boxes(artifacts: Artifacts) -> list[Box]:
    """A box per artifact that is there or that another one names."""
    digests, source = artifacts.digests, artifacts.meta.get("source", {})
    origin = source.get("name") or source.get("path") or source.get("kind") or source.get("source") or "data"
    found = [
        Box(
            "base", "base model", ((artifacts.base["name"], ""), ("weights", _short(artifacts.base["weights_sha256"])))
        ),
        Box("prepared", "prepared data", ((f"from {origin}", ""), ("train", _short(digests.get("train"))))),
    ]
    plain = {"traces": "traces", "law": "scaling law", "gains": "gains of the layers", "plan": "freeze plan"}
    found += [Box(key, title, (("", _short(digests.get(key))),)) for key, title in plain.items()]
    if artifacts.runs:
        broken = {link.reader for link in links(artifacts) if link.target == "models" and link.verdict.broken}
        rows = tuple((name, _short(model_hash(run))) for name, run in artifacts.runs.items())
        found.append(Box("models", "fine-tuned models", rows, frozenset(broken)))
    if artifacts.metrics is not None:
        found.append(Box("metrics", "metrics", (("", _short(digests.get("metrics"))),)))
    return found


def _of_the_plan(artifacts: Artifacts) -> list[Link]:
    plan, digests, reader = artifacts.plan, artifacts.digests, "freeze_plan.json"
    return [
        Link("base", "plan", reader, "weights", plan.model.weights_sha256, artifacts.base["weights_sha256"]),
        Link("prepared", "plan", reader, "sizes", None, digests.get("train")),
        Link("law", "plan", reader, "scaling law", plan.evidence.law_sha256, digests.get("law")),
        Link("gains", "plan", reader, "gains", plan.evidence.gains_sha256, digests.get("gains")),
    ]


def _of_a_run(name: str, run: Mapping[str, Any], weights: str, digests: Mapping[str, str]) -> list[Link]:
    splits = run.get("data_sha256") or {"train": None}
    return [
        Link("base", "models", name, "weights", run.get("base_sha256"), weights),
        Link("plan", "models", name, "plan", run.get("plan_sha256"), digests.get("plan")),
        *(Link("prepared", "models", name, f"{s} split", known, digests.get(s)) for s, known in splits.items()),
    ]


def _of_the_metrics(artifacts: Artifacts) -> Iterable[Link]:
    if artifacts.metrics is None:
        return
    reader = "metrics.json"
    yield Link("base", "metrics", reader, "weights", None, artifacts.base["weights_sha256"])
    yield Link("prepared", "metrics", reader, "test split", None, artifacts.digests.get("test"))
    for name, run in artifacts.runs.items():
        yield Link("models", "metrics", reader, name, None, model_hash(run))


def _sentences(found: Iterable[Link]) -> list[str]:
    recorded = [link for link in found if link.verdict is not Verdict.UNRECORDED]
    broken = [link for link in recorded if link.verdict.broken]
    if not broken:
        return [f"All {count(len(recorded))} hashes that artifacts keep of their inputs agree with the inputs."]
    differences = [
        f"{link.reader} was made from {link.what} {_short(link.recorded)}; present is {_short(link.found)}."
        for link in broken
    ]
    return [
        f"{count(len(broken))} of {count(len(recorded))} hashes that artifacts keep of their inputs "
        "differ from the inputs: this page mixes runs. dvc repro updates what is out of date.",
        *differences,
    ]


def _arrows(found: Iterable[Link]) -> list[Arrow]:
    """One arrow per pair of artifacts; it is broken if any of its links is, and kept if any keeps a hash."""
    pairs: dict[tuple[str, str], list[Verdict]] = {}
    for link in found:
        pairs.setdefault((link.source, link.target), []).append(link.verdict)
    # The prepared data's tokens are those of the base's tokenizer; no file keeps that tokenizer's hash.
    pairs.setdefault(("base", "prepared"), [Verdict.UNRECORDED])
    return [
        Arrow(source, target, any(v.broken for v in verdicts), all(v is Verdict.UNRECORDED for v in verdicts))
        for (source, target), verdicts in pairs.items()
    ]


def _table(found: Iterable[Link]) -> Table:
    headings = ("Read by", "Artifact", "SHA-256 kept by the reader", "SHA-256 of the artifact", "Verdict")
    rows = [
        [
            Cell(link.reader),
            Cell(f"{link.source}: {link.what}"),
            Cell(link.recorded or ABSENT, mark="hash"),
            Cell(link.found or ABSENT, mark="hash"),
            Cell(link.verdict.value, mark="broken" if link.verdict.broken else ""),
        ]
        for link in found
    ]
    caption = "Every reading of one artifact by another, with both hashes."
    return Table("lineage-links", caption, columns(headings, words=5), rows)


def _short(digest: str | None) -> str:
    return digest[:SHORT] if digest else ABSENT
