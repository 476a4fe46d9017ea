"""A short table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(methods: Mapping[str, dict[str, Any]], baselines: Mapping[str, dict[str, Any]], quality: str) -> None:
    """Print quality with its interval, the other scores and cost of every method and baseline."""
    rows = {**baselines, **methods}
    others = [name for name in ("balanced_accuracy", "macro_f1", "loss") if any(name in row for row in rows.values())]
    table = Table(title="on the test split")
    for column in ("", quality, "interval", *others, "of full's FLOPs"):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name, row in rows.items():
        share = row.get("flops_share")
        table.add_row(
            name,
            f"{row[quality]:.3f}",
            f"[{row[f'{quality}_low']:.3f}, {row[f'{quality}_high']:.3f}]",
            *(f"{row[other]:.3f}" if other in row else "" for other in others),
            f"{share:.0%}" if share is not None else "",
        )
    Console().print(table)
