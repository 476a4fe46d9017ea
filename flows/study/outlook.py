"""Where a study stands, in words."""

from flows.study import harvest
from flows.study.forecast import Forecast, Machine, best_known
from flows.study.progress import Progress
from flows.summary import duration


def outlook(progress: Progress) -> str:
    """What there is, what is left, and how long that takes, here or where most was measured."""
    known, here = progress.known(), Machine.of(harvest.where())
    left, looks = progress.wanted(known), progress.looks()
    machine = best_known(progress.tables.runs, here)
    forecast = Forecast(progress.tables.runs, progress.tables.choices, machine)
    seconds, planning = forecast.seconds(left, known.layers), forecast.of_plans(looks)
    parts = [
        f"{_counted(len(progress.cases), 'pair')} of data set and model",
        f"{_counted(len(known.done), 'fine-tune')} there",
    ]
    if looks:
        takes = f"about {duration(planning)}" if planning is not None else "how long is known after the first of each"
        parts.append(f"{_counted(len(looks), 'plan')} to make ({takes}), from which more fine-tunes may follow")
    parts.append(f"{_counted(len(left), 'fine-tune')} left")
    takes = f"about {duration(seconds)}" if seconds is not None else "how long is known after the first of each model"
    if machine == here:
        parts.append(f"{takes} on this machine ({here}; {_counted(forecast.measured, 'fine-tune')} measured here)")
    else:
        parts.append(f"{takes} on {machine}, which measured most; nothing was measured on this machine ({here}) yet")
    parts += [f"left out: {', '.join(progress.absent)}"] * bool(progress.absent)
    return f"study: {', '.join(parts)}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
