"""The trial of a foreign ``config.json``; a module of its own, so that the child process imports no more than this."""

from pathlib import Path

from transformers import AutoConfig


def open_config(file: str) -> None:
    """Open a configuration that needs no code of its author's."""
    AutoConfig.from_pretrained(Path(file).parent, trust_remote_code=False, local_files_only=True)
