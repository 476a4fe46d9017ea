"""A hub that answers as it is told: the library's own code makes its exceptions of the answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

Answer = Callable[[httpx2.Request], httpx2.Response]


@contextmanager
def hub_that(answers: Answer, cache: Path) -> Iterator[None]:
    """Until the end of the block every request is answered so, and nothing is in the cache."""

    def client() -> httpx2.Client:
        hooks = {"request": [hf_request_event_hook]}  # the library's own, which keeps offline mode
        return httpx2.Client(transport=httpx2.MockTransport(answers), event_hooks=hooks)

    set_client_factory(client)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HF_HOME"):
            patch.setattr(f"huggingface_hub.constants.{name}", str(cache))
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # before it asks again
        try:
            yield
        finally:
            set_client_factory(default_client_factory)


def answering(status: int, **headers: str) -> Answer:
    """A refusal with the headers by which the hub tells why: ``x_error_code="GatedRepo"``."""
    given = {name.replace("_", "-"): text for name, text in headers.items()}
    return lambda request: httpx2.Response(status, headers={"x-request-id": "Root=1-2-3", **given}, request=request)


def failing(fault: type[Exception], text: str) -> Answer:
    """No answer: the connection is not made."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        raise fault(text)

    return answer


# What the hub or the network does, and what the user is told of it.
HUB_FAULTS = {
    "gated, not logged in": (
        answering(401, x_error_code="GatedRepo", x_error_message="Access to it is restricted."),
        r"access is restricted; accept the terms on https://huggingface\.co/\S*somebody/thing and log in \(hf auth",
    ),
    "gated, not accepted": (
        answering(403, x_error_code="GatedRepo", x_error_message="You are not in the authorized list."),
        r"access is restricted; accept the terms",
    ),
    "not found": (
        answering(401, x_error_message="Invalid username or password."),
        r"not found on the hub; correct the name, or if it is private log in",
    ),
    "not found, logged in": (answering(404, x_error_code="RepoNotFound"), r"not found on the hub; correct the name"),
    "no such revision": (
        answering(404, x_error_code="RevisionNotFound"),
        r"no revision 'v9'; https://huggingface\.co/\S*somebody/thing/tree/main lists",
    ),
    "a token that is not valid": (
        answering(401, x_error_message="Invalid credentials in Authorization header"),
        r"the hub answered 401 Unauthorized Invalid credentials in Authorization header; .*log in",
    ),
    "down": (answering(503), r"the hub answered 503 Service Unavailable; try again later"),
    "no network": (
        failing(httpx2.ConnectError, "[Errno -2] Name or service not known"),
        r"the hub cannot be reached \(.*ConnectError.*HF_HUB_OFFLINE=1, or name a local folder",
    ),
    "too slow": (failing(httpx2.ConnectTimeout, "timed out"), r"the hub cannot be reached \(.*Timeout"),
    "a proxy's fault": (
        failing(httpx2.ProxyError, "407 Proxy Authentication Required"),
        r"the hub cannot be reached \(ProxyError: 407 Proxy Auth.*proxy's settings",
    ),
}
