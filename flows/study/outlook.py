"""Where a study stands, in words."""

from flows.durations import duration
from flows.study import harvest
from flows.study.forecast import Forecast
from flows.study.progress import Progress


def outlook(progress: Progress) -> str:
    """What there is, what is left, and how long that takes here."""
    known, here = progress.known(), harvest.where()
    left, looks = progress.wanted(known), len(progress.looks())
    forecast = Forecast(progress.tables.runs, here)
    seconds = forecast.seconds(left, known.layers)
    parts = [f"{len(progress.cases)} pairs of data set and model", f"{len(known.done)} fine-tunes there"]
    parts += [f"{looks} plans to make, from which more fine-tunes may follow"] * bool(looks)
    parts.append(f"{len(left)} fine-tunes left")
    takes = f"about {duration(seconds)}" if seconds is not None else "how long is known after the first of each model"
    parts.append(f"{takes} on this machine ({here['machine']}; {forecast.measured} fine-tunes measured here)")
    parts += [f"left out: {', '.join(progress.absent)}"] * bool(progress.absent)
    return f"study: {', '.join(parts)}"
