"""Worker processes that run stages and stay: see :mod:`flows.study.worker` for what each of them does."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue

from flows.study.description import StudyError


class Workers:
    """Processes that run stages; a job takes the next that is free.

    Args:
        project: the folder that holds ``stages``.
        count: how many.
    """

    def __init__(self, project: Path, count: int) -> None:
        places = [str(project), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
        self._processes: list[subprocess.Popen[str]] = []
        self._free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self._stopped = False
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "flows.study.worker"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,  # an interrupt is this process's to deal with
        )
        self._processes.append(process)
        self._free.put(process)

    def run(self, folder: Path, commands: Sequence[Sequence[str]]) -> None:
        """Run commands in a folder.

        Raises:
            StudyError: one of them failed; the text is the last line that it printed.
        """
        if self._stopped:
            raise StudyError("stopped")
        process = self._free.get()
        assert process.stdin
        assert process.stdout
        try:
            print(json.dumps({"folder": str(folder), "commands": commands}), file=process.stdin, flush=True)
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = process.wait()
            if not self._stopped:
                self._start()
            killed = " (killed; if memory ran out: fewer --workers)" if status == -signal.SIGKILL else ""
            raise StudyError(f"its process ended with {status}{killed}")
        answer = json.loads(line)
        self._free.put(process)
        if answer["status"] != 0:
            raise StudyError((answer["said"].strip().splitlines() or ["no word"])[-1].removeprefix("error: "))

    def stop(self) -> None:
        """End all processes, whatever they do."""
        self._stopped = True
        for process in self._processes:
            process.kill()
            process.wait()
