"""The chain as a Workflow Run RO-Crate, in its most detailed profile, Provenance Run Crate 0.5.

dvc.yaml is the workflow; a stage is a step, its room the tool that the step uses; the run that made a
stage's result is an action with its inputs, parameters, outputs and times. The crate is JSON-LD after
RO-Crate 1.1; the same records give the same bytes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from flows.lineage.formats.entities import (
    ELSEWHERE,
    Entity,
    flat,
    format_of,
    fragment,
    kind_of,
    path_of,
    ref,
    time_of,
    type_of,
)
from flows.lineage.formats.results import Result, members

METADATA: Final = "ro-crate-metadata.json"
WORKFLOW: Final = "dvc.yaml"
_SPECIFICATION: Final = "https://w3id.org/ro/crate/1.1"
_WORKFLOW_CRATE: Final = "https://w3id.org/workflowhub/workflow-ro-crate/1.0"
_BIOSCHEMAS: Final = "https://bioschemas.org/profiles/ComputationalWorkflow/1.0-RELEASE"
_LICENCE: Final = "https://www.apache.org/licenses/LICENSE-2.0"
_DVC: Final = "https://dvc.org"
_COMPLETED: Final = "http://schema.org/CompletedActionStatus"
_SECONDS: Final = "https://qudt.org/vocab/unit/SEC"
_PROFILES: Final = {
    "https://w3id.org/ro/wfrun/process/0.5": ("Process Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/workflow/0.5": ("Workflow Run Crate", "0.5"),
    "https://w3id.org/ro/wfrun/provenance/0.5": ("Provenance Run Crate", "0.5"),
    _WORKFLOW_CRATE: ("Workflow RO-Crate", "1.0"),
}
_TERMS: Final = {name: f"https://w3id.org/ro/terms/workflow-run#{name}" for name in ("md5", "sha256", "resourceUsage")}


def crate(found: Sequence[Result], files: Mapping[str, str]) -> Entity:
    """Return the content of ``ro-crate-metadata.json``.

    Args:
        found: the stages' results, each after all that it reads.
        files: files of the crate that are no artifacts (``dvc.yaml`` among them): path → what they are.
    """
    described = _files(found, files)
    actions = [_action(result) for result in found]
    mentioned = [_WORKFLOW_RUN, *(action["@id"] for action in actions)]
    graph = [
        _descriptor(),
        _root(found, described, mentioned),
        *_constants(),
        _workflow(found),
        *_parameters(found),
        *_tools(found),
        *_steps(found),
        *described.values(),
        *actions,
        *_values(found),
        *_usages(found),
        *_control(found),
        _workflow_run(found),
        *_engine(found),
    ]
    return {"@context": [f"{_SPECIFICATION}/context", _TERMS], "@graph": [flat(entity) for entity in graph]}


_WORKFLOW_RUN: Final = "#workflow-run"


def _descriptor() -> Entity:
    conforms = [ref(_SPECIFICATION), ref(_WORKFLOW_CRATE)]
    return {"@id": METADATA, "@type": "CreativeWork", "about": ref("./"), "conformsTo": conforms}


def _root(found: Sequence[Result], described: Mapping[str, Entity], mentioned: Sequence[str]) -> Entity:
    stages = ", ".join(result.stage for result in found)
    return {
        "@id": "./",
        "@type": "Dataset",
        "name": "A run of the SALF chain",
        "description": f"The stages {stages} as DVC last locked them: code, data, parameters, results, runs.",
        "datePublished": time_of(max(result.locked["at"] for result in found)),
        "license": ref(_LICENCE),
        "conformsTo": [ref(profile) for profile in _PROFILES],
        "mainEntity": ref(WORKFLOW),
        "hasPart": [ref(WORKFLOW), *(ref(key) for key, entity in described.items() if entity["@type"] != ELSEWHERE)],
        "mentions": [ref(identifier) for identifier in mentioned],
    }


def _constants() -> Iterator[Entity]:
    for identifier, (name, version) in _PROFILES.items():
        yield {"@id": identifier, "@type": "CreativeWork", "name": name, "version": version}
    yield {"@id": _BIOSCHEMAS, "@type": "CreativeWork", "name": "Bioschemas ComputationalWorkflow"}
    yield {
        "@id": _LICENCE,
        "@type": "CreativeWork",
        "name": "Apache License 2.0",
        "description": "A permissive licence that grants patent rights.",
    }
    yield {"@id": "#dvc-yaml", "@type": "ComputerLanguage", "name": "DVC pipeline", "url": ref(_DVC)}


def _workflow(found: Sequence[Result]) -> Entity:
    commits = sorted({result.start["commit"] for result in found if result.start and result.start.get("commit")})
    return {
        "@id": WORKFLOW,
        "@type": ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"],
        "name": "The graph of stages",
        "encodingFormat": "application/yaml",
        "programmingLanguage": ref("#dvc-yaml"),
        "conformsTo": ref(_BIOSCHEMAS),
        "version": commits or "not under version control",
        "input": [ref(fragment("parameter", name)) for name in _all_parameters(found)],
        "hasPart": [ref(tool) for tool in _by_tool(found)],
        "step": [ref(fragment("step", result.stage)) for result in found],
    }


def _parameters(found: Sequence[Result]) -> Iterator[Entity]:
    for name, value in _all_parameters(found).items():
        yield {
            "@id": fragment("parameter", name),
            "@type": "FormalParameter",
            "name": name,
            "additionalType": type_of(value),
            "workExample": [
                ref(fragment("value", result.stage, name)) for result in found if name in result.parameters
            ],
        }


def _tools(found: Sequence[Result]) -> Iterator[Entity]:
    software: dict[str, Entity] = {}
    for tool, results in _by_tool(found).items():
        used = [package for result in results for package in _packages(result)]
        software.update({package["@id"]: package for package in used})
        yield {
            "@id": tool,
            "@type": "SoftwareApplication",
            "name": results[0].stage.partition("@")[0],
            "softwareVersion": sorted({_commit(result) for result in results}),
            "softwareRequirements": [ref(identifier) for identifier in sorted({one["@id"] for one in used})],
            "input": [ref(fragment("parameter", name)) for name in _all_parameters(results)],
        }
    yield from (software[identifier] for identifier in sorted(software))


def _steps(found: Sequence[Result]) -> Iterator[Entity]:
    for position, result in enumerate(found, start=1):
        yield {
            "@id": fragment("step", result.stage),
            "@type": "HowToStep",
            "name": result.stage,
            "position": str(position),
            "workExample": ref(_tool(result)),
        }


def _files(found: Sequence[Result], files: Mapping[str, str]) -> dict[str, Entity]:
    described = {}
    for path, artifact in members(found).items():
        entity: Entity = {"@id": path_of(artifact), "@type": kind_of(artifact), "name": artifact.shown}
        if entity["@type"] == "File":
            entity |= {"md5": artifact.md5, "encodingFormat": format_of(path)}
        else:
            entity["identifier"] = f"dvc:md5:{artifact.md5}"
        if artifact.size is not None:
            entity["contentSize"] = str(artifact.size)
        described[entity["@id"]] = entity
    for path, description in files.items():
        if path != WORKFLOW and quote(path) not in described:
            described[quote(path)] = {
                "@id": quote(path),
                "@type": "File",
                "name": path,
                "description": description,
                "encodingFormat": format_of(path),
            } | ({"about": ref("./")} if path == "README.md" else {})
    return described


def _action(result: Result) -> Entity:
    start, end = result.start, result.end
    action: Entity = {
        "@id": _action_id(result),
        "@type": "CreateAction",
        "name": f"Run of {result.stage}",
        "description": _story(result),
        "instrument": ref(_tool(result)),
        "object": [
            *(ref(path_of(artifact)) for artifact in result.inputs),
            *(ref(fragment("value", result.stage, name)) for name in result.parameters),
        ],
        "result": [ref(path_of(artifact)) for artifact in result.outputs],
        "endTime": time_of((end or result.locked)["at"]),
        "actionStatus": _COMPLETED,
    }
    if start:
        action["startTime"] = time_of(start["at"])
    if end:
        action["resourceUsage"] = ref(fragment("seconds", result.stage))
    return action


def _story(result: Result) -> str:
    if not result.start:
        how = "was restored from DVC's cache" if result.locked["outcome"] == "restored" else "was found in dvc.lock"
        return f"{result.command} — the result {how}; no run that made it is on record."
    machine = result.start.get("machine") or {}
    where = ", ".join(f"{key} {value}" for key, value in machine.items() if value)
    edits = " with uncommitted edits" if result.start.get("dirty") else ""
    return f"{result.command} — code at commit {_commit(result)}{edits}; on {where or 'an unnamed machine'}."


def _values(found: Sequence[Result]) -> Iterator[Entity]:
    for result in found:
        for name, value in result.parameters.items():
            yield {
                "@id": fragment("value", result.stage, name),
                "@type": "PropertyValue",
                "name": name,
                "value": value if isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False),
                "exampleOfWork": ref(fragment("parameter", name)),
            }


def _usages(found: Sequence[Result]) -> Iterator[Entity]:
    for result in found:
        if result.end:
            yield {
                "@id": fragment("seconds", result.stage),
                "@type": "PropertyValue",
                "name": "wall-clock time",
                "propertyID": "https://schema.org/duration",
                "value": str(result.end["seconds"]),
                "unitCode": _SECONDS,
            }


def _control(found: Sequence[Result]) -> Iterator[Entity]:
    for result in found:
        yield {
            "@id": fragment("control", result.stage),
            "@type": "ControlAction",
            "name": f"DVC brings {result.stage} up to date",
            "instrument": ref(fragment("step", result.stage)),
            "object": ref(_action_id(result)),
            "endTime": time_of(result.locked["at"]),
            "actionStatus": _COMPLETED,
        }


def _workflow_run(found: Sequence[Result]) -> Entity:
    made = {artifact.path: artifact for result in found for artifact in result.outputs}
    read = {artifact.path: artifact for result in found for artifact in result.inputs}
    raw = [artifact for path, artifact in read.items() if not any(_within(path, output) for output in made)]
    begun = [result.start["at"] for result in found if result.start]
    run: Entity = {
        "@id": _WORKFLOW_RUN,
        "@type": "CreateAction",
        "name": "The chain",
        "description": "All stages, each as it was last run; they need not have run in one go.",
        "instrument": ref(WORKFLOW),
        "object": [
            *(ref(path_of(artifact)) for artifact in raw),
            *(ref(fragment("value", result.stage, name)) for result in found for name in result.parameters),
        ],
        "result": [ref(path_of(artifact)) for artifact in made.values()],
        "endTime": time_of(max(result.locked["at"] for result in found)),
        "actionStatus": _COMPLETED,
    }
    return run | ({"startTime": time_of(min(begun))} if begun else {})


def _engine(found: Sequence[Result]) -> Iterator[Entity]:
    versions = sorted({version for result in found if (version := _version_of(result, "dvc"))})
    yield {
        "@id": _DVC,
        "@type": "SoftwareApplication",
        "name": "DVC",
        "url": ref(_DVC),
        "softwareVersion": versions or "unknown",
    }
    yield {
        "@id": "#organize",
        "@type": "OrganizeAction",
        "name": "DVC runs the graph",
        "instrument": ref(_DVC),
        "object": [ref(fragment("control", result.stage)) for result in found],
        "result": ref(_WORKFLOW_RUN),
    }


def _by_tool(found: Sequence[Result]) -> dict[str, list[Result]]:
    tools: dict[str, list[Result]] = {}
    for result in found:
        tools.setdefault(_tool(result), []).append(result)
    return tools


def _all_parameters(found: Sequence[Result]) -> dict[str, Any]:
    values = {name: value for result in found for name, value in result.parameters.items()}
    return {name: values[name] for name in sorted(values)}


def _packages(result: Result) -> list[Entity]:
    versions: Mapping[str, str] = (result.start or {}).get("versions") or {}
    return [
        {"@id": address, "@type": "SoftwareApplication", "name": name, "softwareVersion": version, "url": ref(address)}
        for name, version in versions.items()
        for address in [_address_of(name, version)]
    ]


def _address_of(package: str, version: str) -> str:
    if package == "python":
        return f"https://www.python.org/downloads/release/python-{version.replace('.', '')}/"
    return f"https://pypi.org/project/{quote(package)}/{quote(version)}/"


def _version_of(result: Result, package: str) -> str | None:
    return ((result.start or {}).get("versions") or {}).get(package)


def _commit(result: Result) -> str:
    return (result.start or {}).get("commit") or "unknown"


def _tool(result: Result) -> str:
    return fragment("tool", result.stage.partition("@")[0])


def _action_id(result: Result) -> str:
    return fragment("run", result.start["run"] if result.start else f"locked-{result.locked['seq']}")


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/") or folder.startswith(f"{path}/")
