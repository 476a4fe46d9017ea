"""Prefect flows that drive DVC: dvc.yaml alone knows the graph."""

import sys
from traceback import walk_tb
from types import TracebackType


def report(message: str, status: int) -> int:
    """Print one line for an error, and return the exit status."""
    print(f"error: {message}", file=sys.stderr)
    return status


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say in one line that Prefect cannot read its settings when it is imported; other faults keep their traceback."""
    modules = {frame.f_globals.get("__name__", "") for frame, _ in walk_tb(trace)}
    if issubclass(kind, ValueError) and any(name.startswith("prefect.settings") for name in modules):
        fault = " ".join(str(error).split())
        report(f"Prefect cannot read its settings: {fault}; mend profiles.toml or the variable", 1)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _explain
