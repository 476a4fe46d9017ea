"""Compares the hash that each artifact keeps of its inputs with the files."""

from collections.abc import Iterator
from typing import NamedTuple

from stages.report.artifacts import Artifacts
from stages.report.parts import Cell, Columns, Section, table
from stages.report.wording import ABSENT, count


class Link(NamedTuple):
    """``what`` of ``source`` was read by ``reader``: the SHA-256 that the reader keeps, and that of today's file."""

    source: str
    reader: str
    what: str
    recorded: str | None
    found: str | None

    @property
    def verdict(self) -> str:
        """The comparison of the two hashes, in words."""
        return "missing" if self.found is None else "agrees" if self.recorded == self.found else "differs"


def lineage_section(artifacts: Artifacts) -> Section:
    """Every hash that an artifact keeps of its input, with the input's; readers of something else are named."""
    section = Section("lineage", "Lineage", "What was made from what")
    found = [link for link in links(artifacts) if link.recorded]
    broken = [link for link in found if link.verdict != "agrees"]
    verdict = f"All {count(len(found))} hashes that artifacts keep of their inputs agree with the inputs."
    if broken:
        verdict = (
            f"{count(len(broken))} of {count(len(found))} hashes that artifacts keep of their inputs "
            "differ from the inputs: this page mixes runs. dvc repro updates what is out of date."
        )
    section.sentences += [verdict, *(f"{link.reader} was made from another {link.what}." for link in broken)]
    columns: Columns[Link] = {
        "Read by": lambda link: link.reader,
        "Artifact": lambda link: f"{link.source}: {link.what}",
        "SHA-256 kept by the reader": lambda link: Cell(link.recorded or ABSENT, mark="hash"),
        "SHA-256 of the artifact": lambda link: Cell(link.found or ABSENT, mark="hash"),
        "Verdict": lambda link: Cell(link.verdict, mark="broken" if link in broken else ""),
    }
    caption = "Every hash that an artifact keeps of its input, and the input's own. dvc.lock has the others."
    section.tables.append(table("lineage-links", caption, found, columns, folded=not broken))
    return section


def links(artifacts: Artifacts) -> Iterator[Link]:
    """Every artifact that names its input by a hash, in the order of the chain."""
    weights, digests, plan = artifacts.base.weights_sha256, artifacts.digests, artifacts.plan
    if (trace := artifacts.trace) is not None:
        yield Link("base", "trace", "weights", trace.weights_sha256, weights)
        yield Link("prepared", "trace", "train split", trace.data_sha256, digests.get("train"))
    if artifacts.law is not None:
        yield Link("traces", "scaling_law.json", "traces", artifacts.law.trace_sha256, digests.get("traces"))
    yield Link("base", "freeze_plan.json", "weights", plan.model.weights_sha256, weights)
    yield Link("law", "freeze_plan.json", "scaling law", plan.evidence.law_sha256, digests.get("law"))
    yield Link("gains", "freeze_plan.json", "gains", plan.evidence.gains_sha256, digests.get("gains"))
    for name, run in artifacts.runs.items():
        yield Link("base", name, "weights", run.base_sha256, weights)
        yield Link("plan", name, "plan", run.plan_sha256, digests.get("plan"))
        for split, known in run.data_sha256.items():
            yield Link("prepared", name, f"{split} split", known, digests.get(split))
