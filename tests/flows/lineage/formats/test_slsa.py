"""Statements are read by the in-toto project's own library, signatures checked by OpenSSL."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

MODEL = "data/models/salf+lora-seed1"


def written(project, model: str = MODEL) -> Path:
    return project.root / f"reports/lineage/provenance/{model}.intoto.json"


def checked(text: bytes) -> tuple[dict, Provenance]:
    """The statement after the library has checked it, and its predicate as the library's message."""
    message = json_format.Parse(text, statement_pb2.Statement())  # refuses unknown fields
    Statement.copy_from_pb(message).validate()
    document = json.loads(text)
    assert document["predicateType"] == "https://slsa.dev/provenance/v1"
    return document, json_format.ParseDict(document["predicate"], Provenance())


def test_each_model_folder_gets_a_statement_that_the_library_accepts(project):
    project.export("slsa")
    for model in ("data/base", "data/models/full-seed1", MODEL):
        _, provenance = checked(written(project, model).read_bytes())
        assert provenance.run_details.metadata.finished_on.ToDatetime() > (
            provenance.run_details.metadata.started_on.ToDatetime()
        )


def test_the_subjects_are_the_files_that_sha256sum_sees(project):
    project.export("slsa")
    document, _ = checked(written(project).read_bytes())
    lines = "".join(f"{one['digest']['sha256']}  {one['name']}\n" for one in document["subject"])
    subprocess.run(["sha256sum", "--check", "--strict"], input=lines, text=True, cwd=project.root / MODEL, check=True)
    assert len(document["subject"]) == len(list((project.root / MODEL).iterdir()))


def test_the_predicate_says_what_was_run_from_what(project):
    project.export("slsa")
    _, provenance = checked(written(project).read_bytes())
    build = provenance.build_definition
    outside = json_format.MessageToDict(build.external_parameters)
    assert outside["stage"] == "finetune@salf+lora-1"
    assert outside["parameters"]["finetune.epochs"] == 2
    assert outside["command"].endswith("--seed 1")
    assert json_format.MessageToDict(build.internal_parameters)["seed"] == 1
    read = {one.name: dict(one.digest) for one in build.resolved_dependencies}
    assert read["source code"] == {"gitCommit": project.run("git", "rev-parse", "HEAD").strip()}
    assert read["raw.csv"] == {"md5": subprocess.check_output(["md5sum", project.root / "raw.csv"], text=True)[:32]}
    assert "dvc" in provenance.run_details.builder.version


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_makes_the_key_and_verifies_the_signature(project, tmp_path):
    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    project.run("openssl", "genpkey", "-algorithm", "ed25519", "-out", str(key))
    project.run("openssl", "pkey", "-in", str(key), "-pubout", "-out", str(public))
    project.export("slsa", "--key", str(key))
    envelope = json.loads(written(project).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    checked(payload)
    kind = envelope["payloadType"].encode()
    # The bytes that the DSSE specification has signed: PAE(type, payload).
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    verify = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public), "-sigfile"]

    def verdict(content: bytes) -> int:
        (tmp_path / "signed").write_bytes(content)
        command = [*verify, str(tmp_path / "signature"), "-in", str(tmp_path / "signed")]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert verdict(signed) == 0
    assert verdict(signed.replace(b"salf+lora", b"full     ", 1)) != 0
    assert key.read_text().splitlines()[1] not in written(project).read_text()


def test_an_edited_model_gets_no_statement(project):
    file = project.root / MODEL / "layer_1.safetensors"
    content = file.read_bytes()
    file.unlink()  # it is a link to the cache's copy
    file.write_bytes(content[::-1])
    with pytest.raises(AssertionError, match="error: the folder does not match"):
        project.export("slsa")
    assert not written(project).exists()


@pytest.mark.parametrize(
    ("content", "said"), [("no key", "not an unencrypted private Ed25519 key"), (None, "No such file")]
)
def test_a_wrong_key_is_one_clear_line(project, tmp_path, content, said):
    key = tmp_path / "key.pem"
    if content is not None:
        key.write_text(content)
    with pytest.raises(AssertionError, match=f"error: .*{said}"):
        project.export("slsa", "--key", str(key))
