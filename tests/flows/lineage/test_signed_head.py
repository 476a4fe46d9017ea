"""The remedy of docs/lineage.md, with a real key: the ledger's head in a signed git tag on another repository."""

import json
import os
import shutil
import subprocess

import pytest

from flows.lineage.ledger import Ledger
from salf.ledger import append, parse
from tests.docs_blocks import blocks
from tests.stage_sources import ROOT

SIGN, CHECK = (block for _, block in blocks("lineage.md", "bash", "What a forger can still do"))


def ssh_key(project, room) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", room / "key"], check=True)
    (room / "signers").write_text(f"t@example.org {(room / 'key.pub').read_text()}")
    project.git("config", "user.signingkey", str(room / "key.pub"))
    project.git("config", "gpg.ssh.allowedSignersFile", str(room / "signers"))


def gpg_key(project, room) -> None:
    (room / "gnupg").mkdir(mode=0o700)
    new = ["--quick-generate-key", "t@example.org", "ed25519", "sign"]
    subprocess.run(["gpg", "--homedir", room / "gnupg", "--batch", "--passphrase", "", *new], check=True)
    project.git("config", "user.signingkey", "t@example.org")


@pytest.mark.parametrize(("kind", "program", "key"), [("ssh", "ssh-keygen", ssh_key), ("openpgp", "gpg", gpg_key)])
def test_a_head_in_a_signed_tag_finds_a_ledger_rewritten_with_its_head(ran, tmp_path, kind, program, key):
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    key(ran, tmp_path)
    for name, value in {"gpg.format": kind, "user.name": "t", "user.email": "t@example.org"}.items():
        ran.git("config", name, value)
    subprocess.run(["git", "init", "--quiet", "--bare", tmp_path / "origin"], check=True)
    ran.git("remote", "add", "origin", str(tmp_path / "origin"))

    def status(block: str) -> int:
        own = {"PYTHONPATH": str(ROOT), "GNUPGHOME": str(tmp_path / "gnupg")}
        return subprocess.run(
            ["bash", "-e", "-c", block], cwd=ran.root, env={**os.environ, **own}, check=False
        ).returncode

    assert status(SIGN) == 0
    subprocess.run(["git", "-C", tmp_path / "origin", "rev-parse", "--verify", "audit-1"], check=True)
    assert status(CHECK) == 0

    lines = ran.ledger.read_bytes().splitlines()
    ran.ledger.unlink()
    ran.ledger.with_suffix(".head").unlink()
    for line in lines:  # what a careful forger does: the whole chain anew, with its head
        append(ran.ledger, parse(line.replace(b'"dirty":false', b'"dirty":true')))
    assert Ledger(ran.ledger).faults == []
    assert json.loads(ran.ledger.read_bytes().splitlines()[0])["dirty"]
    assert status("python -m flows.lineage verify") == 0
    assert status(CHECK) == 1
    ran.git("tag", "--annotate", "--force", "audit-1", "--message", str(Ledger(ran.ledger).head))
    assert status(CHECK) == 1  # a tag that nobody signed
