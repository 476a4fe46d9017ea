"""The chain as a Workflow Run RO-Crate, in its most detailed profile, Provenance Run Crate 0.5.

dvc.yaml is the workflow; a stage is a step, its program the tool that the step uses; the run that made a
stage's result is an action with its inputs, parameters, outputs and times. The crate is JSON-LD after
RO-Crate 1.1; the same records give the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from flows.lineage.export import Result, members
from flows.lineage.ledger import RESTORED
from flows.lineage.project import overlap
from salf.ledger import LockedPath

METADATA: Final = "ro-crate-metadata.json"
WORKFLOW: Final = "dvc.yaml"
_ELSEWHERE: Final = "CreativeWork"  # what was read from outside the project is described, not contained
_WORKFLOW_RUN: Final = "#workflow-run"
_SPECIFICATION: Final = "https://w3id.org/ro/crate/1.1"
_WORKFLOW_CRATE: Final = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_BIOSCHEMAS: Final = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
_LICENCE: Final = "https://www.apache.org/licenses/LICENSE-2.0"
_DVC: Final = "https://dvc.org"
_COMPLETED: Final = "http://schema.org/CompletedActionStatus"
_PROFILES: Final = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    _WORKFLOW_CRATE: ("Workflow RO-Crate", "1.0"),
}
_TERMS: Final = {name: f"https://w3id.org/ro/terms/workflow-run#{name}" for name in ("md5", "sha256", "resourceUsage")}
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


def crate(found: Sequence[Result], files: Mapping[str, str]) -> Entity:
    """Return the content of ``ro-crate-metadata.json``."""
    described = _files(found, files)
    actions = [_action(result) for result in found]
    graph = [
        _entity(METADATA, "CreativeWork", about=_ref("./"), conformsTo=[_ref(_SPECIFICATION), _ref(_WORKFLOW_CRATE)]),
        _root(found, described, [_WORKFLOW_RUN, *(action["@id"] for action in actions)]),
        *_constants(),
        _workflow(found),
        *_parameters(found),
        *_tools(found),
        *_steps(found),
        *described.values(),
        *actions,
        *_values(found),
        _workflow_run(found),
        *_engine(found),
    ]
    return {"@context": [f"{_SPECIFICATION}/context", _TERMS], "@graph": graph}


def _entity(identifier: str, kind: str | list[str], /, **facts: Any) -> Entity:
    """An entity in RO-Crate's form: no empty fact, and one value without brackets."""
    flat = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in facts.items()}
    return {"@id": identifier, "@type": kind} | {key: v for key, v in flat.items() if v is not None and v != []}


def _ref(identifier: str) -> dict[str, str]:
    return {"@id": identifier}


def _refs(identifiers: Iterable[str]) -> list[dict[str, str]]:
    return [_ref(identifier) for identifier in identifiers]


def _id(*names: str) -> str:
    """The id of something that is no file: ``#`` and its names."""
    return "#" + "/".join(quote(name, safe="") for name in names)


def _path_of(artifact: LockedPath) -> str:
    """The id of an artifact: its path in the crate, as a URI."""
    if not artifact.is_inside:
        return _id("elsewhere", artifact.md5 or "")
    return quote(artifact.path) + ("/" if artifact.is_folder else "")


def _format_of(path: str) -> str:
    return _FORMATS.get(PurePosixPath(path).suffix, "application/octet-stream")


def _time_of(at: str) -> str:
    """A record's time as the profile wants it: milliseconds, and the zone as an offset."""
    return f"{at[:23]}+00:00"


def _root(found: Sequence[Result], described: Mapping[str, Entity], mentioned: Sequence[str]) -> Entity:
    stages = ", ".join(result.stage for result in found)
    return _entity(
        "./",
        "Dataset",
        name="A run of the SALF chain",
        description=f"The stages {stages} as DVC last locked them: code, data, parameters, results, runs.",
        datePublished=_time_of(max(result.locked.at for result in found)),
        license=_ref(_LICENCE),
        conformsTo=[_ref(profile) for profile in _PROFILES],
        mainEntity=_ref(WORKFLOW),
        hasPart=[_ref(WORKFLOW), *(_ref(key) for key, one in described.items() if one["@type"] != _ELSEWHERE)],
        mentions=[_ref(identifier) for identifier in mentioned],
    )


def _constants() -> Iterator[Entity]:
    for identifier, (name, version) in _PROFILES.items():
        yield _entity(identifier, "CreativeWork", name=name, version=version)
    yield _entity(_BIOSCHEMAS, "CreativeWork", name="Bioschemas ComputationalWorkflow")
    about = "A permissive licence that grants patent rights."
    yield _entity(_LICENCE, "CreativeWork", name="Apache License 2.0", description=about)
    yield _entity("#dvc-yaml", "ComputerLanguage", name="DVC pipeline", url=_ref(_DVC))


def _workflow(found: Sequence[Result]) -> Entity:
    commits = sorted({result.start.commit for result in found if result.start and result.start.commit})
    return _entity(
        WORKFLOW,
        ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        name="The graph of stages",
        encodingFormat="application/yaml",
        programmingLanguage=_ref("#dvc-yaml"),
        conformsTo=_ref(_BIOSCHEMAS),
        version=commits or "not under version control",
        input=[_ref(_id("parameter", name)) for name in _all_parameters(found)],
        hasPart=[_ref(tool) for tool in _by_tool(found)],
        step=[_ref(_id("step", result.stage)) for result in found],
    )


def _parameters(found: Sequence[Result]) -> Iterator[Entity]:
    for name, value in _all_parameters(found).items():
        examples = [_ref(_id("value", result.stage, name)) for result in found if name in result.parameters]
        kind = _TYPES.get(type(value), "PropertyValue")
        yield _entity(_id("parameter", name), "FormalParameter", name=name, additionalType=kind, workExample=examples)


def _tools(found: Sequence[Result]) -> Iterator[Entity]:
    software: dict[str, Entity] = {}
    for tool, results in _by_tool(found).items():
        versions = {pair for result in results for pair in result.versions.items()}
        pages = {_address_of(*pair): pair for pair in versions}
        for page, (name, version) in pages.items():
            software[page] = _entity(page, "SoftwareApplication", name=name, softwareVersion=version, url=_ref(page))
        yield _entity(
            tool,
            "SoftwareApplication",
            name=results[0].stage.partition("@")[0],
            softwareVersion=sorted({result.commit for result in results}),
            softwareRequirements=[_ref(page) for page in sorted(pages)],
            input=[_ref(_id("parameter", name)) for name in _all_parameters(results)],
        )
    yield from (software[page] for page in sorted(software))


def _steps(found: Sequence[Result]) -> Iterator[Entity]:
    for position, result in enumerate(found, start=1):
        example = _ref(_tool(result))
        step = _id("step", result.stage)
        yield _entity(step, "HowToStep", name=result.stage, position=str(position), workExample=example)


def _files(found: Sequence[Result], files: Mapping[str, str]) -> dict[str, Entity]:
    described: dict[str, Entity] = {}
    for path, artifact in members(found).items():
        kind = "Dataset" if artifact.is_folder else "File"
        if artifact.is_folder or not artifact.is_inside:
            facts: Entity = {"identifier": f"dvc:md5:{artifact.md5}"}
        else:
            facts = {"md5": artifact.md5, "encodingFormat": _format_of(path)}
        size = None if artifact.size is None else str(artifact.size)
        kind = kind if artifact.is_inside else _ELSEWHERE
        key = _path_of(artifact)
        described[key] = _entity(key, kind, name=artifact.shown, contentSize=size, **facts)
    for path, text in files.items():
        about = _ref("./") if path == "README.md" else None
        file = _entity(quote(path), "File", name=path, description=text, encodingFormat=_format_of(path), about=about)
        if path != WORKFLOW:
            described.setdefault(quote(path), file)
    return described


def _action(result: Result) -> Entity:
    start, end = result.start, result.end
    return _entity(
        _action_id(result),
        "CreateAction",
        name=f"Run of {result.stage}",
        description=_story(result),
        instrument=_ref(_tool(result)),
        object=_refs([*map(_path_of, result.inputs), *_value_ids(result)]),
        result=_refs(map(_path_of, result.outputs)),
        startTime=_time_of(start.at) if start else None,
        endTime=_time_of((end or result.locked).at),
        actionStatus=_COMPLETED,
        resourceUsage=_ref(_id("seconds", result.stage)) if end else None,
    )


def _story(result: Result) -> str:
    command, start = result.locked.lock.cmd, result.start
    if not start:
        how = "was restored from DVC's cache" if result.locked.outcome == RESTORED else "was found in dvc.lock"
        return f"{command}: the result {how}; no run that made it is on record."
    facts = start.machine.model_dump() if start.machine else {}
    where = ", ".join(f"{key} {value}" for key, value in facts.items() if value) or "an unnamed machine"
    return f"{command}: code at commit {result.commit}{' with uncommitted edits' if start.dirty else ''}; on {where}."


def _values(found: Sequence[Result]) -> Iterator[Entity]:
    for result in found:
        for name, value in result.parameters.items():
            yield _entity(
                _id("value", result.stage, name),
                "PropertyValue",
                name=name,
                value=value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False),
                exampleOfWork=_ref(_id("parameter", name)),
            )
        if result.end:
            yield _entity(
                _id("seconds", result.stage),
                "PropertyValue",
                name="wall-clock time",
                propertyID="https://schema.org/duration",
                value=str(result.end.seconds),
                unitCode="https://qudt.org/vocab/unit/SEC",
            )


def _workflow_run(found: Sequence[Result]) -> Entity:
    made = {artifact.path: artifact for result in found for artifact in result.outputs}
    read = {artifact.path: artifact for result in found for artifact in result.inputs}
    raw = [artifact for path, artifact in read.items() if not any(overlap(path, output) for output in made)]
    begun = [result.start.at for result in found if result.start]
    return _entity(
        _WORKFLOW_RUN,
        "CreateAction",
        name="The chain",
        description="All stages, each as it was last run; they need not have run in one go.",
        instrument=_ref(WORKFLOW),
        object=_refs([*map(_path_of, raw), *(value for result in found for value in _value_ids(result))]),
        result=_refs(map(_path_of, made.values())),
        startTime=_time_of(min(begun)) if begun else None,
        endTime=_time_of(max(result.locked.at for result in found)),
        actionStatus=_COMPLETED,
    )


def _engine(found: Sequence[Result]) -> Iterator[Entity]:
    """DVC, and its part in every stage's run."""
    for result in found:
        yield _entity(
            _id("control", result.stage),
            "ControlAction",
            name=f"DVC brings {result.stage} up to date",
            instrument=_ref(_id("step", result.stage)),
            object=_ref(_action_id(result)),
            endTime=_time_of(result.locked.at),
            actionStatus=_COMPLETED,
        )
    versions = sorted({version for result in found if (version := result.versions.get("dvc"))})
    yield _entity(_DVC, "SoftwareApplication", name="DVC", url=_ref(_DVC), softwareVersion=versions or "unknown")
    yield _entity(
        "#organize",
        "OrganizeAction",
        name="DVC runs the graph",
        instrument=_ref(_DVC),
        object=[_ref(_id("control", result.stage)) for result in found],
        result=_ref(_WORKFLOW_RUN),
    )


def _value_ids(result: Result) -> list[str]:
    return [_id("value", result.stage, name) for name in result.parameters]


def _tool(result: Result) -> str:
    return _id("tool", result.stage.partition("@")[0])


def _by_tool(found: Sequence[Result]) -> dict[str, list[Result]]:
    tools: dict[str, list[Result]] = {}
    for result in found:
        tools.setdefault(_tool(result), []).append(result)
    return tools


def _all_parameters(found: Sequence[Result]) -> dict[str, Any]:
    values = {name: value for result in found for name, value in result.parameters.items()}
    return {name: values[name] for name in sorted(values)}


def _address_of(package: str, version: str) -> str:
    if package == "python":
        return f"https://www.python.org/downloads/release/python-{version.replace('.', '')}/"
    return f"https://pypi.org/project/{quote(package)}/{quote(version)}/"


def _action_id(result: Result) -> str:
    return _id("run", result.start.run if result.start else f"locked-{result.locked.seq}")
