"""How fast machines compute: a maker's peak rates, or a rate that was measured here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from salf.errors import UserError
from salf.files import read_json

# Of the peak, in training of large models: 38 to 43 % on H100 (Llama 3, arXiv 2407.21783, table 4), 46 % on
# TPU v4 (PaLM, arXiv 2204.02311, section 4.1).
UTILISATION: Final = 0.4
GIB: Final = 1 << 30


@dataclass(frozen=True)
class Machine:
    """One device.

    Attributes:
        name: in words.
        flops_per_second: that training reaches.
        memory_bytes: of the device, where known.
        words: where the rate comes from.
    """

    name: str
    flops_per_second: float
    memory_bytes: int | None
    words: str


@dataclass(frozen=True)
class _Sheet:
    teraflops: float
    gib: int


# Dense bfloat16 products with float32 sums, and memory, by the makers' data sheets.
DEVICES: Final = {
    "a100-80gb": _Sheet(312, 80),
    "h100": _Sheet(989, 80),
    "h200": _Sheet(989, 141),
    "l4": _Sheet(121, 24),
    "rtx-4090": _Sheet(165, 24),
}


def device(name: str, utilisation: float) -> Machine:
    """A device of the table."""
    sheet = DEVICES[name]
    words = f"{utilisation:.0%} of the {sheet.teraflops:g} TFLOP/s of its data sheet"
    return Machine(name, sheet.teraflops * 1e12 * utilisation, sheet.gib * GIB, words)


def given_rate(teraflops: float) -> Machine:
    """A machine of which the rate that training reaches is known."""
    return Machine("the machine", teraflops * 1e12, None, f"{teraflops:g} TFLOP/s, as given")


def measured_by(run: str, models: Path, measured: Path) -> Machine:
    """The machine of a finished fine-tune: its counted operations over the seconds that they took.

    Args:
        run: as in ``data/models/<run>``.
        models: the folder of models.
        measured: the folder of what was measured.

    Raises:
        UserError: there is no such run.
    """
    counted, clock = read_json(models / run / "run.json"), read_json(measured / f"{run}.json")
    try:
        seconds = clock["seconds_training"] + clock["seconds_cache"]
        rate: float = counted["flops"] / seconds
        name: Any = clock["machine"]["device"]
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{measured / run}.json: no fine-tune's clock ({error!r}); run: dvc repro finetune") from None
    return Machine(f"this {name}", rate, None, f"{rate / 1e12:.3g} TFLOP/s, measured by {run}")
