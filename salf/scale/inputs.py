"""The inputs of a prediction: a model's configuration, and a machine's throughput."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from salf.errors import UserError
from salf.files import read_json
from salf.plan_records import Rates
from salf.shape import ModelShape

_FILE: Final = Path(__file__).with_name("published.json")
# Of the peak, in training of large models: 38 to 43 % on H100 (Llama 3, arXiv 2407.21783, table 4), 46 % on
# TPU v4 (PaLM, arXiv 2204.02311, section 4.1).
UTILISATION: Final = 0.4
GIB: Final = 1 << 30
# TFLOP/s of dense bfloat16 products with float32 sums, GiB of memory and its GB/s, by the makers' data sheets.
DEVICES: Final = {
    "a100-80gb": (312, 80, 2039),
    "h100": (989, 80, 3350),
    "h200": (989, 141, 4800),
    "l4": (121, 24, 300),
    "rtx-4090": (165, 24, 1008),
}


@dataclass(frozen=True)
class Configuration:
    """A model on paper: the name that was given, its source (a Hub name or a file), and its sizes."""

    name: str
    origin: str
    shape: ModelShape


@dataclass(frozen=True)
class Machine:
    """One device, the rate that training reaches on it, and in words where the rate comes from."""

    name: str
    flops_per_second: float
    memory_bytes: int | None
    words: str
    bytes_per_second: float | None = None  # of its memory; ``None``: unknown, and updates are not timed
    frozen_flops_per_second: float | None = None  # of passes whose results are cached; ``None``: as in training
    answer_flops_per_second: float | None = None  # of training answers alone; ``None``: as that of all positions

    def seconds(self, frozen: int, steps: int, updates: int, *, answers_alone: bool = False) -> float:
        """Seconds of a fine-tune: FLOPs of cached passes and of steps, and bytes of the optimizer's updates.

        It is memory that bounds updates, not arithmetic.
        """
        training = (self.answer_flops_per_second if answers_alone else None) or self.flops_per_second
        cached = frozen / (self.frozen_flops_per_second or self.flops_per_second)
        return cached + steps / training + (updates / self.bytes_per_second if self.bytes_per_second else 0.0)


def configuration(given: str) -> Configuration:
    """Return a published configuration by its name, or a ``config.json`` by its path or folder.

    Raises:
        UserError: it is neither, or its cost cannot be counted; says what is known or missing.
    """
    path = Path(given)
    if path.is_dir():
        path = path / "config.json"
    if path.is_file():
        return Configuration(given, str(path), _shape(read_json(path), str(path)))
    known = published()
    if given not in known:
        close = difflib.get_close_matches(given.lower(), known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
        raise UserError(f"{given}: neither a published configuration nor a config.json or its folder; {hint}")
    entry = known[given]
    return Configuration(given, entry["origin"], _shape(entry["config"], given))


@cache
def published() -> Mapping[str, Mapping[str, Any]]:
    """Name → ``origin``, ``parameters`` as published, and the ``config`` entries that the sizes follow from."""
    return read_json(_FILE)


def device(name: str, utilisation: float) -> Machine:
    """Return a device of the table."""
    teraflops, gib, gigabytes = DEVICES[name]
    words = f"{utilisation:.0%} of the {teraflops:g} TFLOP/s of its data sheet"
    return Machine(name, teraflops * 1e12 * utilisation, gib * GIB, words, gigabytes * 1e9)


def timed(rates: Rates) -> Machine:
    """Return the machine that a plan's rates were measured on."""
    return Machine(
        f"this {rates.machine['device']}",
        rates.flops_per_second,
        None,
        f"{rates.flops_per_second / 1e12:.3g} TFLOP/s, measured before the plan was made",
        rates.bytes_per_second,
        rates.frozen_flops_per_second,
        rates.answer_flops_per_second,
    )


def _shape(config: Any, where: str) -> ModelShape:
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected the entries of a config.json, found {type(config).__name__}")
    try:
        return ModelShape.from_config(config)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
