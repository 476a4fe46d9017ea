"""Which artifact was made from which: the hash that each one keeps of its inputs, compared with the files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from salf.files import digest_of
from salf.records import FineTuneRecord
from stages.report.artifacts import Artifacts
from stages.report.evidence import source_name
from stages.report.parts import Artifact, Cell, Columns, Section, table
from stages.report.wording import ABSENT, count

_SHORT: Final = 8  # characters of a hash in the graph; the table has all of them


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
    def verdict(self) -> str:
        """How the two hashes compare, in words."""
        if self.recorded is None:
            return "no hash kept"
        if self.found is None:
            return "not there to compare"
        return "agrees" if self.recorded == self.found else "differs"

    @property
    def broken(self) -> bool:
        """Whether the reader was made from something other than the present artifact."""
        return self.recorded not in (None, self.found)


def lineage_section(artifacts: Artifacts) -> Section:
    """The artifacts with what each was made from, in a sentence, as cards and in a table."""
    section = Section("lineage", "Lineage", "What was made from what")
    found = list(links(artifacts))
    section.sentences += _sentences(found)
    section.sentences.append(
        f"Below is every artifact with the first {_SHORT} characters of its SHA-256, and what it was made from. "
        "✓: the hash that it keeps of its input is that of the present artifact. ≠: it was made from something else. "
        "·: it keeps no hash, but dvc.lock does."
    )
    section.lineage = list(_cards(artifacts, found))
    columns: Columns[Link] = {
        "Read by": lambda link: link.reader,
        "Artifact": lambda link: f"{link.source}: {link.what}",
        "SHA-256 kept by the reader": lambda link: Cell(link.recorded or ABSENT, mark="hash"),
        "SHA-256 of the artifact": lambda link: Cell(link.found or ABSENT, mark="hash"),
        "Verdict": lambda link: Cell(link.verdict, mark="broken" if link.broken else ""),
    }
    caption = "Every reading of one artifact by another, with both hashes."
    section.tables.append(table("lineage-links", caption, found, columns, folded=True))
    return section


def links(artifacts: Artifacts) -> Iterator[Link]:
    """Every reading of one artifact by another, in the order of the chain."""
    weights, digests, plan = artifacts.base.weights_sha256, artifacts.digests, artifacts.plan
    train, traces = digests.get("train"), digests.get("traces")
    # The prepared data's tokens are those of the base's tokenizer.
    yield Link("base", "prepared", "meta.json", "tokenizer", None, None)
    if (trace := artifacts.trace) is not None:
        yield Link("base", "traces", "trace", "weights", trace.weights_sha256, weights)
        yield Link("prepared", "traces", "trace", "train split", trace.data_sha256, train)
    if artifacts.law is not None:
        yield Link("traces", "law", "scaling_law.json", "traces", artifacts.law.trace_sha256, traces)
    if artifacts.gains is not None:
        yield Link("traces", "gains", "gains.csv", "traces", None, traces)
    yield Link("base", "plan", "freeze_plan.json", "weights", plan.model.weights_sha256, weights)
    yield Link("prepared", "plan", "freeze_plan.json", "sizes", None, train)
    yield Link("law", "plan", "freeze_plan.json", "scaling law", plan.evidence.law_sha256, digests.get("law"))
    yield Link("gains", "plan", "freeze_plan.json", "gains", plan.evidence.gains_sha256, digests.get("gains"))
    for name, run in artifacts.runs.items():
        yield Link("base", "models", name, "weights", run.base_sha256, weights)
        yield Link("plan", "models", name, "plan", run.plan_sha256, digests.get("plan"))
        for split, known in run.data_sha256.items():
            yield Link("prepared", "models", name, f"{split} split", known, digests.get(split))
    if artifacts.metrics is not None:
        yield Link("base", "metrics", "metrics.json", "weights", None, weights)
        yield Link("prepared", "metrics", "metrics.json", "test split", None, digests.get("test"))
        for name, run in artifacts.runs.items():
            yield Link("models", "metrics", "metrics.json", name, None, _model_hash(run))


def _model_hash(run: FineTuneRecord) -> str:
    """One hash for all shards of a fine-tuned model, as ``base.json`` has one for the base model's."""
    return digest_of(run.shards)


def _cards(artifacts: Artifacts, found: Sequence[Link]) -> Iterator[Artifact]:
    """A card per artifact that is there or that another one names."""
    digests, base = artifacts.digests, artifacts.base
    broken = {link.reader for link in found if link.broken}

    def card(key: str, title: str, *lines: tuple[str, str | None]) -> Artifact:
        sources = dict.fromkeys(link.source for link in found if link.target == key)
        read = [(one, _mark([n for n in found if (n.source, n.target) == (one, key)])) for one in sources]
        return Artifact(key, title, [(text, _short(digest), text in broken) for text, digest in lines], read)

    yield card("base", "base model", (base.name, None), ("weights", base.weights_sha256))
    yield card(
        "prepared", "prepared data", (f"from {source_name(artifacts.meta)}", None), ("train", digests.get("train"))
    )
    yield card("traces", "traces", ("files", digests.get("traces")))
    yield card("law", "scaling law", ("scaling_law.json", digests.get("law")))
    yield card("gains", "gains of the layers", ("gains.csv", digests.get("gains")))
    yield card("plan", "freeze plan", ("freeze_plan.json", digests.get("plan")))
    if artifacts.runs:
        yield card("models", "fine-tuned models", *((name, _model_hash(run)) for name, run in artifacts.runs.items()))
    if artifacts.metrics is not None:
        yield card("metrics", "metrics", ("metrics.json", digests.get("metrics")))


def _mark(links: Sequence[Link]) -> str:
    """One sign for all readings of an artifact by another."""
    return "≠" if any(link.broken for link in links) else "✓" if any(link.recorded for link in links) else "·"


def _sentences(found: Sequence[Link]) -> list[str]:
    recorded = sum(link.recorded is not None for link in found)
    broken = [
        f"{link.reader} was made from {link.what} {_short(link.recorded)}; present is {_short(link.found) or ABSENT}."
        for link in found
        if link.broken
    ]
    if not broken:
        return [f"All {count(recorded)} hashes that artifacts keep of their inputs agree with the inputs."]
    return [
        f"{count(len(broken))} of {count(recorded)} hashes that artifacts keep of their inputs "
        "differ from the inputs: this page mixes runs. dvc repro updates what is out of date.",
        *broken,
    ]


def _short(digest: str | None) -> str:
    return digest[:_SHORT] if digest else ""
