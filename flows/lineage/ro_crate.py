"""The chain as a Workflow Run RO-Crate, in its most detailed profile, Provenance Run Crate 0.5.

dvc.yaml is the workflow; a stage is a step, its program the tool that the step uses; the run that made a
stage's result is an action with its inputs, parameters, outputs and times. The crate is JSON-LD after
RO-Crate 1.1; the same records give the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from flows.lineage.export import Result, members
from flows.lineage.ledger import RESTORED
from flows.lineage.project import overlap
from salf.ledger import LockedPath

METADATA: Final = "ro-crate-metadata.json"
WORKFLOW: Final = "dvc.yaml"
_WORKFLOW_RUN: Final = "#workflow-run"
_SPECIFICATION: Final = "https://w3id.org/ro/crate/1.1"
_WORKFLOW_CRATE: Final = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_BIOSCHEMAS: Final = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
_LICENCE: Final = "https://www.apache.org/licenses/LICENSE-2.0"
_DVC: Final = "https://dvc.org"
_COMPLETED: Final = {"actionStatus": "http://schema.org/CompletedActionStatus"}
_PROFILES: Final = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    _WORKFLOW_CRATE: ("Workflow RO-Crate", "1.0"),
}
_TERMS: Final = {"md5": "https://w3id.org/ro/terms/workflow-run#md5"}
_TYPES: Final[dict[type, str]] = {bool: "Boolean", int: "Integer", float: "Float", str: "Text"}  # schema.org's words
_FORMATS: Final = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".lock": "text/plain",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".py": "text/x-python",
    ".yaml": "application/yaml",
}

Entity = dict[str, Any]


class _Graph(dict[str, Entity]):
    """The entities of a crate by id."""

    def add(self, identifier: str, kind: str | list[str] = "", /, **facts: Any) -> Entity:
        """Add an entity, or facts to one that is there (its lists grow); returns the reference to it."""
        entity = self.setdefault(identifier, {"@id": identifier, "@type": kind})
        for key, value in facts.items():
            if isinstance(value, list):
                known = entity.setdefault(key, [])
                known += [one for one in value if one not in known]
            elif value is not None:
                entity[key] = value
        return _ref(identifier)

    def flat(self) -> list[Entity]:
        """The entities in RO-Crate's form: no empty list, and one value without brackets."""
        return [
            {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in entity.items() if v != []}
            for entity in self.values()
        ]


def crate(found: Sequence[Result], files: Mapping[str, str]) -> Entity:
    """Return the content of ``ro-crate-metadata.json``."""
    graph = _Graph()
    about = [_ref(_SPECIFICATION), _ref(_WORKFLOW_CRATE)]
    graph.add(METADATA, "CreativeWork", about=_ref("./"), conformsTo=about)
    root = graph.add("./", "Dataset", name="A run of the SALF chain", datePublished=_time_of(_last(found)))
    workflow = _add_workflow(graph, found)
    _add_files(graph, found, files)
    whole = _add_whole_run(graph, found)
    runs = [_add_run(graph, position, result) for position, result in enumerate(found, start=1)]
    stages = ", ".join(result.stage for result in found)
    licence = "A permissive licence that grants patent rights."
    graph.add(
        root["@id"],
        description=f"The stages {stages} as DVC last locked them: code, data, parameters, results, runs.",
        license=graph.add(_LICENCE, "CreativeWork", name="Apache License 2.0", description=licence),
        conformsTo=[graph.add(page, "CreativeWork", name=n, version=v) for page, (n, v) in _PROFILES.items()],
        mainEntity=workflow,
        mentions=[whole, *runs],
    )
    return {"@context": [f"{_SPECIFICATION}/context", _TERMS], "@graph": graph.flat()}


def _ref(identifier: str) -> Entity:
    return {"@id": identifier}


def _id(*names: str) -> str:
    """The id of something that is no file: ``#`` and its names."""
    return "#" + "/".join(quote(name, safe="") for name in names)


def _file(artifact: LockedPath) -> Entity:
    """The reference to an artifact: its path in the crate, as a URI."""
    if not artifact.is_inside:
        return _ref(_id("elsewhere", artifact.md5 or ""))
    return _ref(quote(artifact.path) + ("/" if artifact.is_folder else ""))


def _format_of(path: str) -> str:
    return _FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream")


def _time_of(at: str) -> str:
    """A record's time as the profile wants it: milliseconds, and the zone as an offset."""
    return f"{at[:23]}+00:00"


def _last(found: Sequence[Result]) -> str:
    return max(result.locked.at for result in found)


def _add_workflow(graph: _Graph, found: Sequence[Result]) -> Entity:
    """dvc.yaml; every run adds its step, tool and parameters to it."""
    commits = sorted({result.start.commit for result in found if result.start and result.start.commit})
    workflow = graph.add(
        WORKFLOW,
        ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        name="The graph of stages",
        encodingFormat="application/yaml",
        programmingLanguage=graph.add("#dvc-yaml", "ComputerLanguage", name="DVC pipeline", url=_ref(_DVC)),
        conformsTo=graph.add(_BIOSCHEMAS, "CreativeWork", name="Bioschemas ComputationalWorkflow"),
        version=commits or "not under version control",
    )
    graph.add("./", hasPart=[workflow])
    return workflow


def _add_files(graph: _Graph, found: Sequence[Result], files: Mapping[str, str]) -> None:
    for path, artifact in members(found).items():
        if artifact.is_folder or not artifact.is_inside:
            facts: Entity = {"identifier": f"dvc:md5:{artifact.md5}"}
        else:
            facts = {"md5": artifact.md5, "encodingFormat": _format_of(path)}
        kind = "Dataset" if artifact.is_folder else "File"
        size = None if artifact.size is None else str(artifact.size)
        # What was read from outside the project is described, not contained.
        kind = kind if artifact.is_inside else "CreativeWork"
        part = graph.add(_file(artifact)["@id"], kind, name=artifact.shown, contentSize=size, **facts)
        graph.add("./", hasPart=[part] if artifact.is_inside else [])
    for path, text in files.items():
        if quote(path) not in graph:  # the workflow is one of them
            about = _ref("./") if path == "README.md" else None
            facts = {"description": text, "encodingFormat": _format_of(path), "about": about}
            graph.add("./", hasPart=[graph.add(quote(path), "File", name=path, **facts)])


def _add_whole_run(graph: _Graph, found: Sequence[Result]) -> Entity:
    """The run of the workflow, and DVC, which organizes it; every stage's run adds its values and its control."""
    made = {artifact.path: artifact for result in found for artifact in result.outputs}
    read = {artifact.path: artifact for result in found for artifact in result.inputs}
    begun = [result.start.at for result in found if result.start]
    whole = graph.add(
        _WORKFLOW_RUN,
        "CreateAction",
        name="The chain",
        description="All stages, each as it was last run; they need not have run in one go.",
        instrument=_ref(WORKFLOW),
        object=[_file(raw) for path, raw in read.items() if not any(overlap(path, output) for output in made)],
        result=list(map(_file, made.values())),
        startTime=_time_of(min(begun)) if begun else None,
        endTime=_time_of(_last(found)),
        **_COMPLETED,
    )
    versions = sorted({version for result in found if (version := result.versions.get("dvc"))}) or "unknown"
    dvc = graph.add(_DVC, "SoftwareApplication", name="DVC", url=_ref(_DVC), softwareVersion=versions)
    graph.add("#organize", "OrganizeAction", name="DVC runs the graph", instrument=dvc, result=whole)
    return whole


def _add_run(graph: _Graph, position: int, result: Result) -> Entity:
    """The run that made a stage's result; with its program, step, values, and DVC's part in it."""
    stage, start, end = result.stage, result.start, result.end
    parameters, values = _add_values(graph, result)
    program = stage.partition("@")[0]
    tool = graph.add(
        _id("tool", program),
        "SoftwareApplication",
        name=program,
        softwareVersion=[result.commit],
        softwareRequirements=list(_add_libraries(graph, result)),
        input=parameters,
    )
    step = graph.add(_id("step", stage), "HowToStep", name=stage, position=str(position), workExample=tool)
    run = graph.add(
        _id("run", start.run if start else f"locked-{result.locked.seq}"),
        "CreateAction",
        name=f"Run of {stage}",
        description=_story(result),
        instrument=tool,
        object=[*map(_file, result.inputs), *values],
        result=list(map(_file, result.outputs)),
        startTime=_time_of(start.at) if start else None,
        endTime=_time_of((end or result.locked).at),
        **_COMPLETED,
    )
    locked = {"endTime": _time_of(result.locked.at), **_COMPLETED}
    name = f"DVC brings {stage} up to date"
    control = graph.add(_id("control", stage), "ControlAction", name=name, instrument=step, object=run, **locked)
    graph.add("#organize", object=[control])
    graph.add(WORKFLOW, input=parameters, hasPart=[tool], step=[step])
    graph.add(_WORKFLOW_RUN, object=values)
    return run


def _story(result: Result) -> str:
    command, start = result.locked.lock.cmd, result.start
    if not start:
        how = "was restored from DVC's cache" if result.locked.outcome == RESTORED else "was found in dvc.lock"
        return f"{command}: the result {how}; no run that made it is on record."
    facts = start.machine.model_dump() if start.machine else {}
    where = ", ".join(f"{key} {value}" for key, value in facts.items() if value) or "an unnamed machine"
    return f"{command}: code at commit {result.commit}{' with uncommitted edits' if start.dirty else ''}; on {where}."


def _add_values(graph: _Graph, result: Result) -> tuple[list[Entity], list[Entity]]:
    """The parameters of a stage, and the values that this run gave them."""
    parameters, values = [], []
    for name, value in result.parameters.items():
        identifier, kind = _id("value", result.stage, name), _TYPES.get(type(value), "PropertyValue")
        facts = {"name": name, "additionalType": kind, "workExample": [_ref(identifier)]}
        parameters.append(graph.add(_id("parameter", name), "FormalParameter", **facts))
        shown = value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)
        values.append(graph.add(identifier, "PropertyValue", name=name, value=shown, exampleOfWork=parameters[-1]))
    return parameters, values


def _add_libraries(graph: _Graph, result: Result) -> Iterator[Entity]:
    for package, version in sorted(result.versions.items()):
        page = f"https://pypi.org/project/{quote(package)}/{quote(version)}/"
        if package == "python":
            page = f"https://www.python.org/downloads/release/python-{version.replace('.', '')}/"
        yield graph.add(page, "SoftwareApplication", name=package, softwareVersion=version, url=_ref(page))
