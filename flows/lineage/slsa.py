"""An in-toto Statement with SLSA provenance (v1) about a model folder, signed where a key is given.

The statement says which run made these files, from which inputs, parameters and code. The build was not
isolated, so it reaches SLSA Build L1; a signature makes later changes visible.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # public, but in no __all__

from flows.lineage.export import Result
from salf.errors import reading
from salf.ledger import LockedPath


def statement(result: Result, model: LockedPath, sha256: Mapping[str, str]) -> dict[str, Any]:
    """Return the statement about one model folder, the stage's output."""
    start, end = result.start, result.end
    facts = {"seed", "machine", "flow_run", "dirty", "dirty_files_sha256"}
    source = [{"name": "source code", "digest": {"gitCommit": start.commit}}] if start and start.commit else []
    times = {"invocationId": start.run, "startedOn": start.at} if start else {}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(sha256.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:salf:dvc-stage:v1",
                "externalParameters": {
                    "stage": result.locked.stage,
                    "command": result.locked.lock.cmd,
                    "parameters": result.parameters,
                    "output": model.path,
                },
                "internalParameters": start.model_dump(include=facts, exclude_unset=True) if start else {},
                "resolvedDependencies": [*source, *map(_descriptor, result.inputs)],
            },
            "runDetails": {
                "builder": {"id": "urn:salf:local-dvc", "version": start.versions if start else {}},
                "metadata": times | ({"finishedOn": end.at} if end else {}),
                "byproducts": [_descriptor(other) for other in result.outputs if other != model],
            },
        },
    }


def envelope(document: dict[str, Any], key_file: Path) -> dict[str, Any]:
    """Return a statement in its DSSE envelope, signed with an Ed25519 key."""
    hint = "make one with: openssl genpkey -algorithm ed25519 -out FILE"
    with reading(key_file, f"not an unencrypted private Ed25519 key in PEM; {hint}"):
        key = load_pem_private_key(key_file.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise TypeError("a key of another kind")
    text = json.dumps(document, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    sealed = Envelope(text.encode(), "application/vnd.in-toto+json", {})
    sealed.sign(CryptoSigner(key))
    return dict(sealed.to_dict())


def _descriptor(artifact: LockedPath) -> dict[str, Any]:
    # The hash of a folder is DVC's own: MD5 of the list of its files' names and MD5s.
    name = "dvcMd5Dir" if artifact.is_folder else "md5"
    return {"name": artifact.shown, "digest": {name: (artifact.md5 or "").removesuffix(".dir")}}
