"""Compares the hash that each artifact keeps of its inputs with the files."""

from collections.abc import Iterator
from dataclasses import dataclass

from salf.files import digest_of
from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Columns, Section, table
from stages.report.wording import ABSENT, count


@dataclass(frozen=True)
class Link:
    """``what`` of ``source`` was read by ``reader``: the SHA-256 that the reader keeps, and that of today's file."""

    source: str
    reader: str
    what: str
    recorded: str | None
    found: str | None

    @property
    def verdict(self) -> str:
        """The comparison of the two hashes, in words."""
        if self.recorded is None:
            return "no hash kept"
        if self.found is None:
            return "missing"
        return "agrees" if self.recorded == self.found else "differs"

    @property
    def broken(self) -> bool:
        """Whether the reader was made from something other than the present artifact."""
        return self.recorded not in (None, self.found)


def lineage_section(artifacts: Artifacts) -> Section:
    """Every reading of one artifact by another, with both hashes; readers of something else are named."""
    section = Section("lineage", "Lineage", "What was made from what")
    found = list(links(artifacts))
    recorded = sum(link.recorded is not None for link in found)
    broken = [link for link in found if link.broken]
    verdict = f"All {count(recorded)} hashes that artifacts keep of their inputs agree with the inputs."
    if broken:
        verdict = (
            f"{count(len(broken))} of {count(recorded)} hashes that artifacts keep of their inputs "
            "differ from the inputs: this page mixes runs. dvc repro updates what is out of date."
        )
    section.sentences += [verdict, *(f"{link.reader} was made from another {link.what}." for link in broken)]
    columns: Columns[Link] = {
        "Read by": lambda link: link.reader,
        "Artifact": lambda link: f"{link.source}: {link.what}",
        "SHA-256 kept by the reader": lambda link: Cell(link.recorded or ABSENT, mark="hash"),
        "SHA-256 of the artifact": lambda link: Cell(link.found or ABSENT, mark="hash"),
        "Verdict": lambda link: Cell(link.verdict, mark="broken" if link.broken else ""),
    }
    caption = "Every reading of one artifact by another, with both hashes. Where no hash is kept, dvc.lock has it."
    section.tables.append(table("lineage-links", caption, found, columns, folded=not broken))
    return section


def links(artifacts: Artifacts) -> Iterator[Link]:
    """Every reading of one artifact by another, in the order of the chain."""
    weights, digests, plan = artifacts.base.weights_sha256, artifacts.digests, artifacts.plan
    train, traces = digests.get("train"), digests.get("traces")
    # The prepared data's tokens are those of the base's tokenizer.
    yield Link("base", "meta.json", "tokenizer", None, None)
    if (trace := artifacts.trace) is not None:
        yield Link("base", "trace", "weights", trace.weights_sha256, weights)
        yield Link("prepared", "trace", "train split", trace.data_sha256, train)
    if artifacts.law is not None:
        yield Link("traces", "scaling_law.json", "traces", artifacts.law.trace_sha256, traces)
    if artifacts.gains is not None:
        yield Link("traces", "gains.csv", "traces", None, traces)
    yield Link("base", "freeze_plan.json", "weights", plan.model.weights_sha256, weights)
    yield Link("prepared", "freeze_plan.json", "sizes", None, train)
    yield Link("law", "freeze_plan.json", "scaling law", plan.evidence.law_sha256, digests.get("law"))
    yield Link("gains", "freeze_plan.json", "gains", plan.evidence.gains_sha256, digests.get("gains"))
    for name, run in artifacts.runs.items():
        yield Link("base", name, "weights", run.base_sha256, weights)
        yield Link("plan", name, "plan", run.plan_sha256, digests.get("plan"))
        for split, known in run.data_sha256.items():
            yield Link("prepared", name, f"{split} split", known, digests.get(split))
    if artifacts.metrics is not None:
        yield Link("base", "metrics.json", "weights", None, weights)
        yield Link("prepared", "metrics.json", "test split", None, digests.get("test"))
        for name, run in artifacts.runs.items():
            yield Link("models", "metrics.json", name, None, digest_of(run.shards))
