"""What a study runs at once, a plan or some fine-tunes: its name, its place in the order, how its results are kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from flows.study import harvest
from flows.study.agenda import Case, FineTune
from flows.study.description import Settings
from flows.study.harvest import Artifacts
from flows.study.progress import Look, Progress
from flows.study.settings import digest, for_training
from flows.study.tables import Row, Tables, outcome_of
from salf.rate_choice import Tried, choose


@dataclass(frozen=True)
class Item:
    """Something to run: a plan to look at, or fine-tunes; the name says which."""

    name: str
    work: Look | tuple[FineTune, ...] = field(compare=False)

    @property
    def case(self) -> Case:
        """Data set and model."""
        return self.work.case if isinstance(self.work, Look) else self.work[0].case

    @property
    def fine_tunes(self) -> tuple[FineTune, ...]:
        """Those in it."""
        return () if isinstance(self.work, Look) else self.work

    @property
    def words(self) -> str:
        """What it is, for a reader."""
        where = f"{self.case.data_set}, {self.case.model}"
        if isinstance(self.work, Look):
            return f"{where}: plan ({self.work.source})"
        methods = ", ".join(one.method for one in self.work)
        return f"{where}, seed {self.work[0].seed}: {methods} at equal {self.work[0].budget}"

    @classmethod
    def of(cls, work: Look | tuple[FineTune, ...]) -> "Item":
        """Named after what it is: the same work has the same name wherever it is run."""
        told = (work.source, work.values) if isinstance(work, Look) else [repr(one) for one in work]
        return cls(f"study-{digest(told)}", work)


def ready(progress: Progress, taken: Sequence[Item]) -> list[Item]:
    """What can be started now, in order.

    Case by case the plan that tells the model's depth and the coarse grid, so that every data set has its curve
    early; then the other plans, since they say which boundaries are wanted; then those: see ``Progress.rank``.

    Args:
        progress: where the study stands.
        taken: what is running or has failed.
    """
    busy = {fine_tune for item in taken for fine_tune in item.fine_tunes}
    wanted = [fine_tune for fine_tune in progress.wanted(progress.known()) if fine_tune not in busy]
    items = [Item.of(look) for look in progress.looks()] + [Item.of(batch) for batch in progress.next_batches(wanted)]
    return sorted((item for item in items if item not in taken), key=lambda item: progress.rank(item.work))


def asked(item: Item, progress: Progress) -> tuple[Settings, str]:
    """Values of parameters, and the stage up to which the experiment runs."""
    if isinstance(item.work, Look):
        return item.work.values, "plan"
    return for_training(progress.settings[item.case].values, item.work), "evaluate"


def keep(item: Item, made: Artifacts, progress: Progress, seconds: float) -> None:
    """Keep what an item has made in the study's tables.

    Args:
        item: a plan or fine-tunes.
        made: what the stages left.
        progress: where the study stands.
        seconds: what it took; every fine-tune carries its part, shared out by size, every rule of a plan all of it.
    """
    if isinstance(item.work, Look):
        _keep_look(item.work, made, progress, seconds)
    else:
        _keep_runs(item.work, made, progress, seconds)


def _keep_look(look: Look, made: Artifacts, progress: Progress, seconds: float) -> None:
    facts = {"settings": progress.tables.keep_settings(look.settings), "seconds": seconds}
    rows = [{**row, **facts} for row in harvest.choices(look, made)]
    progress.tables.keep_choices(rows, harvest.intervals(look, made))


def _keep_runs(batch: tuple[FineTune, ...], made: Artifacts, progress: Progress, seconds: float) -> None:
    layers = progress.known().layers[batch[0].case]
    facts = {**progress.facts(batch[0].case), **harvest.where(), "layers": layers}
    results, walls = harvest.results(made, batch, facts), harvest.shared_out(seconds, batch, layers)
    found, before = [], [progress.before(one) for one in batch]
    for (row, said), one, wall, old in zip(results, batch, walls, before, strict=True):
        whole = {**row, **progress.method_facts(one), "seconds_wall": wall}
        found.append(_best((whole, said), old, progress.tables) if old else (whole, said))
    progress.tables.keep_runs(found, [old for old in before if old])


def _best(found: tuple[Row, pa.Table], before: Row, tables: Tables) -> tuple[Row, pa.Table]:
    """Whichever wins over all rates: what was found, or the best of those that were tried before.

    Where the new rate brings back an earlier one that had lost, whose predictions are gone, everything stays as it was
    but the new outcome: the next experiment trains at all rates (see :func:`flows.study.agenda.agenda`).
    """
    row, said = found
    new, kept = row["outcomes"], outcome_of(before)
    known = [*tables.outcomes(before), kept, *new]
    best = choose([_tried(one) for one in known], row["validation_examples"]).rate
    if best != row["learning_rate"]:
        rates = row["rates"] if best == kept["learning_rate"] else before["rates"]
        row, said = {**before, "rates": rates}, tables.predictions(before)
    wall = (before["seconds_wall"] or 0.0) + found[0]["seconds_wall"]
    return {**row, "seconds_wall": wall, "outcomes": [kept, *new]}, said


def _tried(outcome: Row) -> Tried:
    return Tried(outcome["learning_rate"], outcome["validation_loss"], outcome["validation_accuracy"])
