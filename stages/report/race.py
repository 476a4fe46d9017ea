"""The race: every arm's validation loss at its looks, where it was dropped, and what all of it cost."""

from salf.records import RaceArm, RaceRecord
from stages.report.artifacts import Artifacts
from stages.report.figures import curves
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
    dots = [[(point.epoch, point.validation_loss) for point in arm.curve] for arm in race.arms]
    lines = {str(at): (_label(race.arms[at]), line) for at, line in enumerate(dots) if line}
    title = f"Validation loss of the arms of {name}"
    caption = "A line per arm, a marker per look; it ends where the arm left the race."
    return curves(f"fig-{name}", title, ("epoch", "validation loss"), lines, caption=caption)


def _label(arm: RaceArm) -> str:
    return f"{arm.method} {arm.learning_rate:g}"
