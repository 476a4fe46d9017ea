"""The chain as a Workflow Run RO-Crate 0.5: dvc.yaml is the workflow, and every stage a tool that it runs.

The run that made a stage's result is an action with its inputs, parameters, outputs and times. The crate is JSON-LD
after RO-Crate 1.1; the same records give the same bytes.
"""

import json
from collections.abc import Iterable, Sequence
from mimetypes import MimeTypes
from typing import Any, Final
from urllib.parse import quote

from flows.lineage.export import Result, members
from flows.lineage.ledger import RESTORED
from flows.lineage.project import overlap
from salf.ledger import LockedPath

METADATA: Final = "ro-crate-metadata.json"
_ROOT: Final = "./"
_WORKFLOW: Final = "dvc.yaml"
_SPECIFICATION: Final = "https://w3id.org/ro/crate/1.1"
_WORKFLOW_CRATE: Final = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_PROFILES: Final = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    _WORKFLOW_CRATE: "Workflow RO-Crate",
}
_BIOSCHEMAS: Final = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
_LICENCE: Final = "https://www.apache.org/licenses/LICENSE-2.0"
_COMPLETED: Final = {"actionStatus": "http://schema.org/CompletedActionStatus"}
_FORMATS: Final = MimeTypes()  # Python's own table, whatever this machine's says
_FORMATS.add_type("text/markdown", ".md")

Entity = dict[str, Any]


def crate(found: Sequence[Result], files: Sequence[str]) -> Entity:
    """Return the content of ``ro-crate-metadata.json``; ``files`` are paths of further ones."""
    data, runs = _data(found, files), list(map(_run, found))
    whole = _whole_run(found)
    entities = [*_frame(found, data, [whole, *runs]), *data, whole, *runs]
    for result in found:
        stage, commit = result.locked.stage, (result.start and result.start.commit) or "unknown"
        tool = _entity(_id("tool", stage), "SoftwareApplication", stage, softwareVersion=commit)
        entities += [tool, *_values(result)]
    return {"@context": f"{_SPECIFICATION}/context", "@graph": list({one["@id"]: one for one in entities}.values())}


def _frame(found: Sequence[Result], data: Iterable[Entity], actions: Iterable[Entity]) -> list[Entity]:
    """The crate itself, its workflow, and the pages that say what both follow."""
    commits = sorted({result.start.commit for result in found if result.start and result.start.commit})
    stages = ", ".join(result.locked.stage for result in found)
    root = _entity(
        _ROOT,
        "Dataset",
        "A run of the SALF chain",
        description=f"The stages {stages} as DVC last locked them: code, data, parameters, results, runs.",
        datePublished=_time(_last(found)),
        license=_ref(_LICENCE),
        conformsTo=list(map(_ref, _PROFILES)),
        mainEntity=_ref(_WORKFLOW),
        hasPart=[_ref(_WORKFLOW), *(_ref(one["@id"]) for one in data if one["@type"] != "CreativeWork")],
        mentions=_refs(actions),
    )
    workflow = _entity(
        _WORKFLOW,
        ["File", "SoftwareSourceCode", "ComputationalWorkflow"],
        "The graph of stages",
        encodingFormat="application/yaml",
        programmingLanguage=_ref("#dvc-yaml"),
        conformsTo=_ref(_BIOSCHEMAS),
        version=commits or "not under version control",
    )
    about = {"about": _ref(_ROOT), "conformsTo": [_ref(_SPECIFICATION), _ref(_WORKFLOW_CRATE)]}
    return [
        {"@id": METADATA, "@type": "CreativeWork", **about},
        root,
        workflow,
        _entity("#dvc-yaml", "ComputerLanguage", "DVC pipeline", url=_ref("https://dvc.org")),
        _entity(_BIOSCHEMAS, "CreativeWork", "Bioschemas ComputationalWorkflow"),
        _entity(_LICENCE, "CreativeWork", "Apache License 2.0"),
        *(_entity(page, "CreativeWork", name, version=page.rpartition("/")[2]) for page, name in _PROFILES.items()),
    ]


def _data(found: Sequence[Result], files: Sequence[str]) -> list[Entity]:
    """Inputs, outputs and further files. What was read from outside the project is described, not contained."""
    entities = []
    for path, artifact in members(found).items():
        form = "Dataset" if artifact.is_folder else "File"
        kind = form if artifact.is_inside else "CreativeWork"
        size = None if artifact.size is None else str(artifact.size)
        facts = {"identifier": f"dvc:md5:{artifact.md5}", "contentSize": size, **_format(path, form)}
        entities.append(_entity(_place(artifact), kind, artifact.shown, **facts))
    for path in files:
        if path != _WORKFLOW:
            about = _ref(_ROOT) if path == "README.md" else None
            entities.append(_entity(quote(path), "File", path, about=about, **_format(path, "File")))
    return entities


def _whole_run(found: Sequence[Result]) -> Entity:
    made = {artifact.path: artifact for result in found for artifact in result.outputs}
    read = {artifact.path: artifact for result in found for artifact in result.inputs}
    begun = [result.start.at for result in found if result.start]
    return _entity(
        "#workflow-run",
        "CreateAction",
        "The chain",
        description="All stages, each as it was last run; they need not have run in one go.",
        instrument=_ref(_WORKFLOW),
        object=[_ref(_place(raw)) for path, raw in read.items() if not any(overlap(path, out) for out in made)],
        result=[_ref(_place(artifact)) for artifact in made.values()],
        startTime=_time(min(begun)) if begun else None,
        endTime=_time(_last(found)),
        **_COMPLETED,
    )


def _run(result: Result) -> Entity:
    """The run that made a stage's result."""
    start = result.start
    return _entity(
        _id("run", start.run if start else f"locked-{result.locked.seq}"),
        "CreateAction",
        f"Run of {result.locked.stage}",
        description=_story(result),
        instrument=_ref(_id("tool", result.locked.stage)),
        object=[*(_ref(_place(artifact)) for artifact in result.inputs), *_refs(_values(result))],
        result=[_ref(_place(artifact)) for artifact in result.outputs],
        startTime=_time(start.at) if start else None,
        endTime=_time((result.end or result.locked).at),
        **_COMPLETED,
    )


def _story(result: Result) -> str:
    command, start = result.locked.lock.cmd, result.start
    if not start:
        how = "was restored from DVC's cache" if result.locked.outcome == RESTORED else "was found in dvc.lock"
        return f"{command}: the result {how}; no run that made it is on record."
    facts = start.machine.model_dump() if start.machine else {}
    where = ", ".join(f"{key} {value}" for key, value in facts.items() if value) or "an unnamed machine"
    code = f"code at commit {start.commit}{' with uncommitted edits' if start.dirty else ''}"
    return f"{command}: {code}; with {', '.join(map(' '.join, sorted(start.versions.items())))}; on {where}."


def _values(result: Result) -> list[Entity]:
    """The values that a stage's parameters had."""
    found = []
    for name, value in result.parameters.items():
        shown = value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        found.append(_entity(_id("value", result.locked.stage, name), "PropertyValue", name, value=shown))
    return found


def _entity(identifier: str, kind: str | list[str], name: str, /, **facts: Any) -> Entity:
    """An entity in RO-Crate's form: no empty fact, and one value without brackets."""
    known = {key: one[0] if isinstance(one, list) and len(one) == 1 else one for key, one in facts.items()}
    return {"@id": identifier, "@type": kind, "name": name} | {k: v for k, v in known.items() if v not in (None, [])}


def _ref(identifier: str) -> Entity:
    return {"@id": identifier}


def _refs(entities: Iterable[Entity]) -> list[Entity]:
    return [_ref(one["@id"]) for one in entities]


def _id(*names: str) -> str:
    """The id of something that is no file: ``#`` and its names."""
    return "#" + "/".join(quote(name, safe="") for name in names)


def _place(artifact: LockedPath) -> str:
    """The id of an artifact: its path in the crate, as a URI."""
    if not artifact.is_inside:
        return _id("elsewhere", artifact.md5 or "")
    return quote(artifact.path) + ("/" if artifact.is_folder else "")


def _format(path: str, kind: str) -> Entity:
    return {"encodingFormat": _FORMATS.guess_type(path)[0] or "application/octet-stream"} if kind == "File" else {}


def _time(at: str) -> str:
    """A record's time as the profile wants it: milliseconds, and the zone as an offset."""
    return f"{at[:23]}+00:00"


def _last(found: Sequence[Result]) -> str:
    return max(result.locked.at for result in found)
