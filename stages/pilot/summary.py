"""What the stage prints: what is going to be done and what it costs, then what came of it."""

from collections.abc import Mapping
from typing import Any

from stages.pilot.bench import Bench
from stages.pilot.operations import Operations


def announce(bench: Bench, operations: Operations) -> None:
    """Say before the first pilot how many there are and what they cost."""
    grid = bench.grid
    boundaries, sizes = (", ".join(map(str, sorted(each))) for each in (grid.boundaries, grid.sizes))
    print(
        f"pilots with layers 1 to {boundaries} of {bench.shape.layers} frozen, on {sizes} of {len(bench.everything)} "
        f"training examples: {operations.share:.2f} times the operations of one full fine-tune"
    )


def conclude(artifact: Mapping[str, Any]) -> None:
    """Say what the pilots found, of the piloted boundaries."""
    print(artifact["law"]["verdict"])
    piloted = {pilot["boundary"] for pilot in artifact["pilots"]}
    for row in artifact["predictions"]:
        if row["boundary"] in piloted:
            print(f"  layers 1–{row['boundary']} frozen: predicted validation loss {_loss(row)}")


def _loss(row: Mapping[str, Any]) -> str:
    interval, above = f"{row['low']:.4f} to {row['high']:.4f}", f"{row['excess']:.4f} ± {row['excess_error']:.4f}"
    return f"{row['loss']:.4f} ({interval}), {above} above the best"
