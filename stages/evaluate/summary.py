"""A short table for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(methods: Mapping[str, dict[str, Any]], baselines: Mapping[str, dict[str, Any]], quality: str) -> None:
    """Print quality with its interval, and cost, of every method and baseline."""
    table = Table(title="on the test split")
    for column in ("", quality.replace("_", " "), "interval", "loss", "of full's FLOPs"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in {**baselines, **methods}.items():
        share = row.get("flops_share")
        table.add_row(
            name,
            f"{row[quality]:.3f}",
            f"{row[f'{quality}_low']:.3f} to {row[f'{quality}_high']:.3f}",
            f"{row['loss']:.3f}" if "loss" in row else "",
            f"{share:.0%}" if share is not None else "",
        )
    Console().print(table)
