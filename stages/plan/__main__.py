"""Stage ``plan``: law, gains and model shape → data/plan/freeze_plan.json."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from salf.errors import UserError
from salf.evidence import Evidence, read_gains, read_law, read_pilot, read_signals
from salf.files import replacing_folder, sha256_file
from salf.methods import SCOPES
from salf.plan import FILE_NAME
from salf.plan_records import EvidenceHashes
from salf.records import read_base, read_sizes
from salf.selectors import SELECTORS
from salf.settings import Device
from salf.summary import summary
from stages.common.command import exit_code, parser_of
from stages.common.params import Plan, Room
from stages.plan.assemble import Work, make_plan
from stages.plan.budget import rates_here

_PARSER: Final = parser_of(
    "plan",
    "Choose which layers to freeze; state the reason, the certainty and the cost of every boundary.\n\n"
    "selectors (plan.selector), each with the last layer that it freezes:\n"
    + "".join(f"  {name:25}{each.boundary}\n" for name, each in SELECTORS.items() if name not in SCOPES),
    {
        "base": ("data/base", "the base model's folder (its weights are not read)"),
        "prepared": ("data/prepared", "the prepared data's folder (for its size)"),
        "law": ("reports/scaling_law.json", "the scaling laws"),
        "gains": ("reports/gains.csv", "the gain of every layer"),
        "signals": ("reports/signals.csv", "evidence for other selectors, if it was measured"),
        "pilot": ("reports/pilot.json", "predictions of pilots, if there are any"),
        "out": ("data/plan", "the folder to write the plan to"),
    },
    optional=("signals", "pilot"),
)


class PlanRoom(Room):
    """The parameters that this stage reads."""

    device: Device
    finetune: Work
    plan: Plan


def main(argv: Sequence[str] | None = None) -> None:
    """Choose the boundary and write the plan."""
    args = _PARSER.parse_args(argv)
    params = PlanRoom.load()
    base, sizes = read_base(args.base), read_sizes(args.prepared)
    layers = base.shape.layers
    if layers < 3:
        raise UserError(f"{args.base}: a model of {layers} layers leaves no boundary to choose; take a deeper one")
    weights = base.identity.weights_sha256
    law = read_law(args.law, layers, weights)
    signals = read_signals(args.signals, layers) if args.signals else {}
    pilot = read_pilot(args.pilot, layers, weights) if args.pilot else None
    gains = read_gains(args.gains, layers)
    evidence = Evidence(layers, law.quantities, gains, signals=signals, pilot=pilot, confidence=law.confidence)
    hashes = EvidenceHashes(
        law_sha256=sha256_file(args.law),
        gains_sha256=sha256_file(args.gains),
        trace_sha256=law.trace_sha256,
        signals_sha256=sha256_file(args.signals) if args.signals else None,
        pilot_sha256=sha256_file(args.pilot) if args.pilot else None,
    )
    kept = Path(params.finetune.cache_folder) / "rates.json"
    measure = partial(rates_here, args.base, params.device, params.finetune.processes, kept=kept)
    plan = make_plan(base, sizes, evidence, params.plan, params.finetune, hashes, measure)
    with replacing_folder(args.out) as folder:
        plan.save(folder / FILE_NAME)
    print(*summary(plan), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_code(main, parser=_PARSER))
