"""What a stage's source says about itself, read without importing it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def declared_groups(room: Path) -> frozenset[str]:
    """The parameter groups that a room reads: the fields of its one subclass of ``Room``."""
    classes = [
        node
        for file in room.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Room" for base in node.bases)
    ]
    assert len(classes) <= 1, f"{room}: more than one Room"
    return frozenset(
        field.target.id
        for found in classes
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def attributes_of(room: Path, group: type) -> frozenset[str]:
    """The fields of a parameter group that a room's modules take as an attribute of anything typed as that group."""
    taken: set[str] = set()
    for file in room.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        holders = {
            node.arg
            for node in ast.walk(tree)
            if isinstance(node, ast.arg)
            and isinstance(node.annotation, ast.Name)
            and node.annotation.id == group.__name__
        }
        taken |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in holders
        }
    return frozenset(taken & set(group.model_fields))
