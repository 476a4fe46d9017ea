"""The race: every arm's validation loss at its looks, where it was dropped, and what all of it cost."""

from matplotlib.axes import Axes

from salf.records import RaceArm, RaceRecord
from stages.common.figures import INK, colour, marker, place_labels
from stages.report.artifacts import Artifacts
from stages.report.figures import along, figure
from stages.report.parts import Figure, Section
from stages.report.wording import flops, percent


def race_section(artifacts: Artifacts) -> Section | None:
    """A figure of every race; ``None`` where there was none."""
    races = {name: run.race for name, run in artifacts.runs.items() if run.race}
    if not races:
        return None
    section = Section("race", "Race", "Which arm won the race")
    for name, race in races.items():
        dropped = sum(one.fate in ("worse accuracy", "worse loss") for look in race.looks for one in look.standings)
        read = sum(arm.flops_validation for arm in race.arms)
        section.sentences.append(
            f"{name}: {_label(race.arms[race.winner])} won against {len(race.arms) - 1} other arms, of which {dropped} "
            f"were dropped as significantly worse. All arms together cost {flops(race.flops)}: "
            f"{percent(race.flops_before / race.flops)} for the caches, {percent(read / race.flops)} for reading the "
            f"validation split, the rest for steps. The winner’s training alone costs {flops(race.flops_winner)}."
        )
        section.figures.append(_figure(name, race))
    return section


def _figure(name: str, race: RaceRecord) -> Figure:
    lines = {at: [(p.epoch, p.validation_loss) for p in arm.curve] for at, arm in enumerate(race.arms) if arm.curve}
    fates = {one.arm: one.fate for look in race.looks for one in look.standings}  # at each arm's last look

    def paint(axes: Axes) -> None:
        for at, dots in lines.items():
            method = race.arms[at].method
            axes.plot(*zip(*dots, strict=True), marker=marker(method), color=colour(method), markersize=5, lw=1.8)
            if fates[at] != "won":
                axes.plot(*dots[-1], marker="x", color=INK, markersize=9, zorder=3)
        axes.margins(x=0.12, y=0.14)
        axes.set(xlabel="epoch", ylabel="validation loss")
        labels = [(*dots[-1], _label(race.arms[at]), colour(race.arms[at].method)) for at, dots in lines.items()]
        place_labels(axes, labels, [dot for dots in lines.values() for dot in along(dots)])

    caption = "A line per arm, a marker per look, a cross where an arm left the race."
    return figure(f"fig-{name}", f"Validation loss of the arms of {name}", caption, paint)


def _label(arm: RaceArm) -> str:
    return f"{arm.method} {arm.learning_rate:g}"
