"""Takes a stage's place under DVC: its outputs are digests of all that the stage may read.

Called as ``python -m stages.NAME --option path ...`` in a copy of the project. Whatever a stage could
see changed (a declared parameter, an input's bytes, its command) changes its outputs: the widest
propagation that the graph allows, at the price of a few milliseconds a stage.
"""

import hashlib
import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Write the outputs of the stage that ``arguments`` call."""
    stage = arguments[1].removeprefix("stages.")
    record = json.loads(Path("seen.json").read_text(encoding="utf-8"))
    paths = [Path(word) for word in arguments[2:] if "/" in word]
    inputs = {str(path): _digest(path) for path in paths if path.exists()}  # DVC removed the outputs
    text = hashlib.sha256(json.dumps([arguments, inputs, record["groups"][stage]]).encode()).hexdigest()
    for path in paths:
        if not path.exists():
            _write(path, record["files"], text)
    with open("calls.txt", "a", encoding="utf-8") as calls:
        calls.write(" ".join(arguments[1:]) + "\n")


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(str(file).encode() + file.read_bytes() for file in files)).hexdigest()


def _write(path: Path, files: list[str], text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        path.write_text(json.dumps({"digest": text}), encoding="utf-8")
        return
    path.mkdir()
    for name in files:
        (path / name).write_text(f"{name} {text}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
