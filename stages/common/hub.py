"""Explains faults of the Hugging Face Hub to the user, in one line."""

import errno
from typing import Final, Literal

from httpx2 import HTTPError
from huggingface_hub import constants, errors

Kind = Literal["model", "data set"]

FAULTS: Final = (OSError, HTTPError, errors.HFValidationError)  # all that a download ends with
LOG_IN: Final = "log in (hf auth login, or a token in HF_TOKEN)"

_UNREACHED: Final = (
    "the hub cannot be reached ({reason}); mend the connection or the proxy's settings, take what the hub's cache "
    "holds with HF_HUB_OFFLINE=1, or name a local folder"
)
_OFFLINE: Final = "no folder here, not in the hub's cache, and HF_HUB_OFFLINE is set; unset it, or name a local folder"
# The most specific first: a class before its base classes, a cause before its consequence.
_MEANINGS: Final[dict[type[BaseException], str]] = {
    errors.GatedRepoError: f"access is restricted; accept the terms on {{page}} and {LOG_IN}",
    errors.RevisionNotFoundError: "no revision {revision!r}; {page}/tree/main lists the branches and tags",
    errors.RepositoryNotFoundError: "no folder here, and not found on the hub; correct the name, or if it is private "
    f"{LOG_IN}",
    errors.HfHubHTTPError: f"the hub answered {{reason}}; try again later, or {LOG_IN}",
    errors.IncompleteSnapshotError: "the hub's cache holds a part of it only, and the hub is not reached; "
    "connect to it (and unset HF_HUB_OFFLINE), or name a local folder",
    errors.OfflineModeIsEnabled: _OFFLINE,
    HTTPError: _UNREACHED,
    errors.LocalEntryNotFoundError: _UNREACHED,
    errors.FileMetadataError: _UNREACHED,
    ConnectionError: _UNREACHED,
    errors.HFValidationError: "no folder here, and no name of the hub's: {reason}",
}
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT}


def hub_page(kind: Kind, name: str) -> str:
    """URL of a model's or dataset's page, where users accept its terms."""
    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'data set' else ''}{name}"


def hub_fault(error: BaseException, kind: Kind, name: str, revision: str | None) -> str | None:
    """Say what is wrong and what to do; ``None`` if it is not a fault of the Hub or of its cache."""
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    if any(isinstance(each, OSError) and each.errno in _NO_ROOM for each in chain):
        return f"no room on the disk for the hub's cache ({constants.HF_HOME}); free space, or set HF_HOME elsewhere"
    page = hub_page(kind, name)
    for fault, meaning in _MEANINGS.items():
        for each in chain:
            if isinstance(each, fault):
                if meaning == _UNREACHED and constants.HF_HUB_OFFLINE:
                    meaning = _OFFLINE
                return meaning.format(page=page, revision=revision, reason=_reason(each))
    return None


def _reason(error: BaseException) -> str:
    if isinstance(error, errors.HfHubHTTPError):  # its text begins with the number of the request
        message = error.server_message or ""
        return " ".join(f"{error.response.status_code} {error.response.reason_phrase} {message}".split())
    return " ".join(f"{type(error).__name__}: {error}".split())
