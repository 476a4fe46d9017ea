"""``salf law``: a table of runs → each method's law, and which method to take at which number of examples."""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, Field, create_model
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from salf.errors import UserError
from salf.evidence import LEVELS, CriticalSize, Forecast, MethodLaw, read_rows
from salf.fitting.joint import REACH, Runs, critical_sizes, forecasts, joint_law

DESCRIPTION: Final = (
    "Fit the loss of every method in a table of runs to a factor X and the number of examples D (arXiv 2402.17193). "
    "Says what each method would reach at a number of examples and at twice as many, and from which number on one "
    "method is better than another."
)
_SIZES: Final = 3  # fewest numbers of examples
_RESAMPLES: Final = 200
_SEED: Final = 1
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Run(BaseModel):
    """A row of the table; ``level`` is in the factor's column."""

    method: str = "all runs"
    level: _Positive
    examples: _Positive
    loss: _Positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the command its arguments."""
    parser.add_argument("table", type=Path, help="csv with a run per row: columns examples, loss, FACTOR and method")
    parser.add_argument("--factor", required=True, help="column of X, for example layers, rank, parameters or tokens")
    parser.add_argument("--at", type=float, help="number of examples to predict for (default: the table's largest)")
    parser.add_argument("--confidence", type=float, default=0.9, help="of the intervals (default: 0.9)")


def run(args: argparse.Namespace) -> None:
    """Print what a table says."""
    laws = {name: joint_law(runs, args.confidence, _SEED) for name, runs in _read(args.table, args.factor).items()}
    size = args.at or max(law.runs.variables[:, 1].max() for law in laws.values())
    losses = forecasts(laws, (size, 2 * size), args.confidence, _SEED)
    show({name: law.record for name, law in laws.items()}, losses, critical_sizes(laws, args.confidence))


def _read(table: Path, factor: str) -> dict[str, Runs]:
    """The runs of each method; those of the same X and D are draws of one."""
    kind = create_model("Run", __base__=_Run, level=(_Positive, Field(alias=factor)))
    draws = defaultdict[str, defaultdict[tuple[float, float], list[float]]](lambda: defaultdict(list))
    for _, row in read_rows(table, kind):
        draws[row.method][row.level, row.examples].append(row.loss)
    if not draws:
        raise UserError(f"{table}: no runs in it")
    found = {}
    for name, own in draws.items():
        variables, losses = np.array([*own]), np.array([np.mean(each) for each in own.values()])
        for what, values, fewest in zip((factor, "examples"), variables.T, (LEVELS, _SIZES), strict=True):
            if (count := len(np.unique(values))) < fewest:
                raise UserError(f"{table}: {name} has {count} values of {what}; a law needs at least {fewest}")
        found[name] = Runs(factor, variables, losses, np.tile(losses, (_RESAMPLES, 1)))
    return found


def show(laws: Mapping[str, MethodLaw], losses: Sequence[Forecast], meetings: Sequence[CriticalSize]) -> None:
    """Print laws, forecasts and critical sizes."""
    for name, law in laws.items():
        print(*_law_lines(name, law), sep="\n")
    table = Table("level", "examples", *laws, box=SIMPLE, collapse_padding=True, pad_edge=False, show_edge=False)
    cells = {(one.level, one.examples, one.method): f"{one.loss:.4g} ({one.low:.4g}–{one.high:.4g})" for one in losses}
    for level, size in dict.fromkeys((one.level, one.examples) for one in losses):
        table.add_row(f"{level:g}", f"{size:g}", *(cells.get((level, size, name), "") for name in laws))
    Console().print(table)
    print(*map(_meeting_line, meetings), sep="\n")


def _law_lines(name: str, law: MethodLaw) -> Iterator[str]:
    values = ", ".join(f"{parameter} {value:.3g}" for parameter, value in law.parameters.items())
    yield f"{name}: {law.formula}: {values}"
    yield f"  {law.verdict}"
    for part, errors in law.left_out.items():
        if errors:
            forms = {**errors.forms, "without a law": errors.without}
            off = ", ".join(f"{form} {error:.2%}" for form, error in forms.items())
            yield f"  errors at {part.replace('_', ' ')} left out: {off}"


def _meeting_line(meeting: CriticalSize) -> str:
    if meeting.examples is None:
        words = f"none: {meeting.below} is better at all sizes up to {REACH} times the largest run"
    else:
        low, high = (f"{end:.0f}" if end else "outside" for end in (meeting.low, meeting.high))
        words = f"{meeting.below} up to {meeting.examples:.0f} examples ({low} to {high}), {meeting.above} above"
    warnings = "".join(f"; warning: {warning}" for warning in meeting.warnings)
    return f"critical size at level {meeting.level:g}: {words}{warnings}"
