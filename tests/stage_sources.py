"""What a stage says about itself."""

from importlib import import_module
from pathlib import Path

from stages.common.params import Params, Room

ROOT = Path(__file__).resolve().parents[1]


def room_of(stage: str) -> type[Room | Params]:
    """The stage's one subclass of ``Room``; without one it reads the whole file."""
    main = vars(import_module(f"stages.{stage}.__main__")).values()
    rooms = [each for each in main if isinstance(each, type) and issubclass(each, Room) and each is not Room]
    (room,) = rooms or [Params]
    return room


def parameters_of(stage: str) -> set[str]:
    """What a stage reads of params.yaml: whole groups, and ``group.key`` where it reads some keys of a group."""
    read = set()
    for group, field in room_of(stage).model_fields.items():
        keys, known = set(field.annotation.model_fields), set(Params.model_fields[group].annotation.model_fields)
        assert keys <= known
        read |= {group} if keys == known else {f"{group}.{key}" for key in keys}
    return read
