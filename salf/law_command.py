"""``salf law``: a table of runs → each method's law, and which method to take at which number of examples."""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
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
    "Fit the loss of every method in a table of runs to a factor X and the number of examples D (arXiv 2402.17193), "
    "and predict which method is better at which number of examples, and what twice as many would give."
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
    rows = defaultdict[str, list[tuple[float, float, float]]](list)
    for _, row in read_rows(table, kind):
        rows[row.method].append((row.level, row.examples, row.loss))
    if not rows:
        raise UserError(f"{table}: no runs in it")
    columns = {name: np.array(own) for name, own in rows.items()}
    for name, own in columns.items():
        for what, values, fewest in zip((factor, "examples"), own.T, (LEVELS, _SIZES), strict=False):
            if (count := len(np.unique(values))) < fewest:
                raise UserError(f"{table}: {name} has {count} values of {what}; a law needs at least {fewest}")
    return {name: Runs.of(factor, own[:, :2], own[None, :, 2], _RESAMPLES, _SEED) for name, own in columns.items()}


def show(laws: Mapping[str, MethodLaw], losses: Sequence[Forecast], meetings: Sequence[CriticalSize]) -> None:
    """Print laws, forecasts and critical sizes."""
    for name, law in laws.items():
        values = ", ".join(f"{parameter} {value:.3g}" for parameter, value in law.parameters.items())
        print(f"{name}: {law.formula}: {values}\n  {law.verdict}")
        for part, errors in law.left_out.items():
            if errors:
                off = ", ".join(f"{form} {error:.2%}" for form, error in errors.forms.items())
                print(f"  errors at {part.replace('_', ' ')} left out: {off}, without a law {errors.without:.2%}")
    table = Table("level", "examples", *laws, box=SIMPLE, collapse_padding=True, pad_edge=False, show_edge=False)
    cells = {(one.level, one.examples, one.method): f"{one.loss:.4g} ({one.low:.4g}–{one.high:.4g})" for one in losses}
    for level, size in dict.fromkeys((one.level, one.examples) for one in losses):
        table.add_row(f"{level:g}", f"{size:g}", *(cells.get((level, size, name), "") for name in laws))
    Console().print(table)
    for meeting in meetings:
        print(f"critical size at level {meeting.level:g}: {'; warning: '.join((_words(meeting), *meeting.warnings))}")


def _words(meeting: CriticalSize) -> str:
    if meeting.examples is None:
        return f"none: {meeting.below} is better at all sizes up to {REACH} times the largest run"
    low, high = (f"{end:.0f}" if end else "outside" for end in (meeting.low, meeting.high))
    return f"{meeting.below} up to {meeting.examples:.0f} examples ({low} to {high}), {meeting.above} above"
