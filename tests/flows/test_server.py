"""Where no Prefect server answers, or a port is taken: one line, and nothing was started."""

import http.server
import socket
import threading

import pytest

from tests.flows.test_serve import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def other_server():
    """An HTTP server that is not Prefect's; returns its port."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("url", "why", "place"),
    [
        ("http://127.0.0.1:9/api", "Connection refused", "the environment"),
        ("nonsense", "missing an 'http", "the environment"),
        ("http://127.0.0.1:{port}/api", "no Prefect server: HTTP 501", "Prefect's settings, profile 'mine'"),
    ],
)
def test_a_flow_whose_server_does_not_answer_is_refused_in_one_line(toy, other_server, url, why, place):
    url = url.format(port=other_server)
    home = toy.root / "home"
    home.mkdir()
    given = {"PREFECT_HOME": str(home)}
    if "profile" in place:
        (home / "profiles.toml").write_text(f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n')
    else:
        given["PREFECT_API_URL"] = url
    refused = command(toy.root, "flows.pipeline", **given)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: no Prefect server answers at {url} (")
    assert why in line
    assert f"PREFECT_API_URL in {place} names it" in line
    assert toy.calls("first") == 0


def test_a_taken_port_is_told_before_anything_starts(toy):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = command(toy.root, "flows.serve", "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "it is taken" in line
    assert not (toy.root / ".prefect").exists()


@pytest.mark.parametrize(("profiles", "port", "why"), [("not [toml", "4200", "Expected '='"), ("", "abc", "'abc'")])
def test_settings_that_prefect_cannot_read_end_without_a_traceback(toy, profiles, port, why):
    home = toy.root / "home"
    home.mkdir()
    (home / "profiles.toml").write_text(profiles)
    refused = command(toy.root, "flows.audit", PREFECT_HOME=str(home), PREFECT_SERVER_API_PORT=port)
    assert refused.returncode == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("error: Prefect cannot read its settings: ")
    assert why in last
    assert "Traceback" not in refused.stderr
