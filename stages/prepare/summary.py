"""What the stage tells the reader at its end."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.prepare.rows import listed


def print_summary(meta: Mapping[str, Any], example: str, console: Console) -> None:
    """Print rows, classes, what was left out, lengths, and one example prompt."""
    table = Table("split", "rows", "tokens", "prompt tokens", "classes", title="prepared data")
    for name in sorted(meta["splits"], key=lambda name: -meta["splits"][name]["rows"]):
        facts = meta["splits"][name]
        lengths = f"{facts['prompt_tokens_min']} to {facts['prompt_tokens_max']}"
        classes = _spread(facts["label_counts"]) if meta["labels"] else _chosen_from(facts)
        table.add_row(name, f"{facts['rows']:,}", f"{facts['tokens']:,}", lengths, classes)
    console.print(table)
    lists = {
        "dropped": [f"{n:,} {reason}" for reason, n in meta["dropped"].items()],
        "refused": [f"{one['split']}: {one['count']:,} {one['reason']}" for one in meta["refused"]],
        "kept, but see": [f"{one['count']:,} {one['reason']}" for one in meta["noted"]],
        "classes left out": [f"{label} ({n:,} rows)" for label, n in meta["classes_left_out"].items()],
        "empty": [f"{column} in {n:,} rows" for column, n in meta["blank"].items()],
    }
    for title, told in lists.items():
        if told or title in ("dropped", "refused"):
            text = listed(told, 10, "; ") or "none"
            console.print(f"{title}: {text}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"cut from the left at {meta['max_tokens']:,} tokens: {meta['truncated']:,}; "
        f"all prompts share their first {meta['shared_prefix_tokens']:,} tokens"
    )
    console.print("an example:", style="bold")
    console.print(escape(example), highlight=False, soft_wrap=True)


def _chosen_from(facts: Mapping[str, Any]) -> str:
    if "candidates" not in facts:
        return "free answers"
    return f"{facts['candidates'] / facts['rows']:.3g} candidates a row"


def _spread(counts: Mapping[str, int]) -> str:
    fewest, most = min(counts.values()), max(counts.values())
    return f"{len(counts)} of {fewest} rows" if fewest == most else f"{len(counts)} of {fewest} to {most} rows"
