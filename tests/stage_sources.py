"""What a stage's source says about itself, read without importing it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@cache
def imported(file: Path) -> frozenset[Path]:
    """Files of this project that a source file imports, also inside functions and type-checking blocks."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            found |= _files_of(name)
    return frozenset(found)


def reached(room: Path) -> frozenset[Path]:
    """All files of the project that a room's modules import, directly or not, the room's own included."""
    seen: set[Path] = set()
    waiting = list(room.rglob("*.py"))
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting.extend(imported(file))
    return frozenset(seen)


def data_files(files: frozenset[Path]) -> frozenset[Path]:
    """Files beside the given modules that their text names in a string, in full or by ``with_suffix``."""
    return frozenset(
        beside
        for file in files
        for beside in file.parent.iterdir()
        if beside.is_file()
        and beside.suffix not in {".py", ".pyc"}
        and {beside.name, beside.name.removeprefix(file.stem)} & _strings(file)
    )


def has_code(file: Path) -> bool:
    """Whether a module is more than a docstring."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return not all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


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


def _files_of(name: str) -> set[Path]:
    parts = name.split(".")
    if parts[0] not in {"stages", "flows"}:
        return set()
    path = ROOT.joinpath(*parts)
    found = {file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()}
    # Importing a.b.c runs the packages a and a.b too.
    found |= {parent / "__init__.py" for parent in path.parents if (parent / "__init__.py").is_file()}
    return found


@cache
def _strings(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return frozenset(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
