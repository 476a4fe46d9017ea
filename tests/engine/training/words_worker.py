"""One of two processes that train with every word: ``FOLDER WORDS``, WORDS is JSON: method and settings by word."""

import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from salf.engine.training.processes import joined
from stages.common.command import exit_code
from stages.finetune.launch import end_with_launcher
from tests.engine.training.test_words import settings_of, trained


def main(argv: list[str] | None = None) -> None:
    """Train and write what every process ended with."""
    folder, words = Path(sys.argv[1]), json.loads(sys.argv[2])
    end_with_launcher()
    with joined("cpu") as processes:
        for name, (method, acts) in words.items():
            settings = settings_of(name, acts, batch_size=5, accumulate=3)
            save_file(
                trained(method, settings, dropout=0.0, processes=processes),
                folder / f"{name}-{processes.rank}.safetensors",
            )


if __name__ == "__main__":
    sys.exit(exit_code(main))
