"""The Prefect server of a flow, or of the deployments: the configured one, or one that starts here."""

import atexit
import contextlib
import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx
from prefect.context import get_settings_context
from prefect.settings import PREFECT_API_URL

from flows.processes import guarded
from salf.errors import UserError

PREFECT: Final = (sys.executable, "-m", "prefect", "--no-prompt")
START_SECONDS: Final = 180.0  # a new database on a slow machine
_ANSWER_SECONDS: Final = 10.0
# What Prefect starts for a flow without a server: no web pages, no schedules.
_FOR_ONE_FLOW: Final = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT_UI_ENABLED": "false"}


def configured() -> str | None:
    """Return the URL of the server that the user's settings name, which must answer; ``None``: they name none."""
    url = PREFECT_API_URL.value()
    if url and (fault := _fault(url)):
        profile = get_settings_context().profile.name
        place = "the environment" if "PREFECT_API_URL" in os.environ else f"Prefect's settings, profile {profile!r}"
        advice = "start it, correct the address (http://HOST:PORT/api), or unset it to have a server started here"
        raise UserError(f"no Prefect server answers at {url} ({fault}); PREFECT_API_URL in {place} names it: {advice}")
    return url or None


def start(
    environment: Mapping[str, str], host: str = "127.0.0.1", port: int | None = None
) -> "tuple[str, subprocess.Popen[Any]]":
    """Start a server that ends with this process, however that ends; returns its URL and process once it answers.

    Without a ``port`` it takes a free one and serves one flow: no web pages, no schedules.
    """
    home = Path(environment.get("PREFECT_HOME", ".prefect")).absolute()  # the database too is this project's own
    environment = {**environment, "PREFECT_HOME": str(home), **(_FOR_ONE_FLOW if port is None else {})}
    said = subprocess.DEVNULL if port is None else None
    port = _free(host, port or 0)
    url = f"http://{host}:{port}/api"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "salf-server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two servers that set up one database at the same time break it
        command = [*PREFECT, "server", "start", "--host", host, "--port", str(port)]
        server = guarded(command, env=environment, stdout=said)
        assert server.stdin is not None
        atexit.register(server.stdin.close)  # not before: Prefect's last words are sent when Python ends
        deadline = time.monotonic() + START_SECONDS
        while fault := _fault(url):
            if server.poll() is not None:
                raise UserError(f"the Prefect server ended with {server.returncode}; its lines above have the reason")
            if time.monotonic() > deadline:
                raise UserError(f"the Prefect server does not answer at {url} in {START_SECONDS:.0f} s ({fault})")
            time.sleep(0.5)
    return url, server


def _free(host: str, port: int) -> int:
    """The port, if nobody listens there; for 0 any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do, after an earlier one of theirs
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            why = "it is taken, perhaps by another checkout's server" if taken else error
            raise UserError(f"port {port} of {host}: {why}; choose another one (make serve PORT=4300)") from None
        return int(probe.getsockname()[1])


def _fault(url: str) -> str | None:
    """Why no Prefect server answers there; ``None``: one does."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/health", timeout=_ANSWER_SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return " ".join(str(error).split()) or type(error).__name__
    with contextlib.suppress(ValueError):
        if answer.status_code in (401, 403) or answer.json() is True:  # behind a login even health may be
            return None
    return f"what answers there is no Prefect server: HTTP {answer.status_code}"
