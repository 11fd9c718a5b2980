"""Create the Hub client and translate its errors. The client reads the token from HF_TOKEN or `hf auth login`."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llm_forget.core.errors import HubError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
RETRY = "run the same command again"
CLIENT_PACKAGES = {"huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2"}
SIGNED_URL = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # upload URLs carry a signature in the query


def client() -> HfApi:
    """Return a Hub client that identifies as this package. It shows progress bars only if stderr is a terminal."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from llm_forget.core import __version__

    if not sys.stderr.isatty():
        disable_progress_bars()
    logger = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(log_filter, UnsignedUrls) for log_filter in logger.filters):
        logger.addFilter(UnsignedUrls())
    return HfApi(library_name="llm_forget", library_version=__version__)


class UnsignedUrls(logging.Filter):
    """A log filter that removes the signatures of upload URLs from messages of the client."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = SIGNED_URL.sub(r"\1", record.getMessage()), ()
        return True


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Raise errors of the Hub client in a ``with`` block as `HubError`, without token or URL. Others are unchanged."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(_refusal_text(error, repository)) from error
    except HTTPError as error:
        raise HubError(_connection_text(error)) from error
    except json.JSONDecodeError as error:
        raise HubError(f"the answer of the Hub is not JSON; {RETRY}") from error
    # An invalid answer of the Hub, an invalid setting or hf_xet can make the client raise errors of any type.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        of_disk = isinstance(error, OSError) and error.errno is not None
        if not _from_client(error) or (of_disk and not isinstance(error, ConnectionError | TimeoutError)):
            raise
        raise HubError(_unexpected_text(error, repository)) from error


def _from_client(error: BaseException) -> bool:
    """Return whether an error was raised in the Hub client or in one of its HTTP libraries."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in CLIENT_PACKAGES for frame in frames)


def _unexpected_text(error: Exception, repository: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__
    if isinstance(error, LocalTokenNotFoundError):
        return f"no token for the Hub was found; {LOGIN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not contacted; unset it"
    if isinstance(cause, HTTPError):  # from an upload thread, or from a download that fell back to the cache
        reason = _refusal_text(cause, repository) if isinstance(cause, HfHubHTTPError) else _connection_text(cause)
        return f"an upload to '{repository}' failed: {reason}" if isinstance(error, RuntimeError) else reason
    if isinstance(error, UnicodeEncodeError):
        return f"the token contains an invalid character; {LOGIN}"
    if isinstance(error, ImportError):
        return "a proxy is set that the Hub's client cannot use as it is installed; `pip install socksio`, or unset it"
    if isinstance(error, OSError | RuntimeError):  # hf_xet states the HTTP status only in its message
        status = re.search(r"\b([45]\d\d)\b", re.sub(r"https?://\S+", "", str(error)))
        return _status_text(int(status[1]), repository) if status else _connection_text(cause or error)
    if any(f.f_globals.get("__name__", "").startswith("httpx") for f, _ in traceback.walk_tb(error.__traceback__)):
        return "HF_ENDPOINT or the proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) is not a valid URL; correct it"
    return f"the client could not read the answer of the Hub ({type(error).__name__}); {RETRY}"


def _connection_text(error: BaseException) -> str:
    """Return why the Hub did not answer. Errors are compared by class name, as clients use several HTTP libraries."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    texts = {
        "ProxyError": "the proxy refused the request; check HTTPS_PROXY and NO_PROXY",
        "UnsupportedProtocol": "HF_ENDPOINT is not a URL; it must begin with https://",
        "TimeoutException": f"the Hub did not answer in time; {RETRY}",
        "ConnectError": f"the Hub could not be reached; check the network, HF_ENDPOINT and proxies, then {RETRY}",
    }
    matching_text = next((text for name, text in texts.items() if name in kinds), None)
    return matching_text or f"the connection to the Hub failed ({type(error).__name__}); {RETRY}"


def _refusal_text(error: Any, repository: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no such revision; name a branch, a tag or a commit of it"
    if status == 401 and "Invalid credentials" in (error.response.headers.get("X-Error-Message") or ""):
        return f"the Hub does not know this token (401); {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"'{repository}' is not on the Hub, or your token has no access ({status}); {LOGIN}"
    return _status_text(status, repository)


def _status_text(status: int, repository: str) -> str:
    texts = {
        401: f"the Hub does not know this token (401); {LOGIN}",
        403: f"your token may not write to '{repository}' (403); use one with write access",
        404: f"the Hub does not have the requested file of '{repository}' (404); {RETRY}",
        409: f"the request conflicts with the state of the repository (409); {RETRY}",
        412: f"'{repository}' was changed in the meantime (412); review the change, then {RETRY}",
        413: f"a file is larger than the Hub allows for '{repository}' (413)",
        429: f"too many requests (429); wait some minutes, then {RETRY}",
    }
    return texts.get(status) or f"the Hub failed with status {status}; {RETRY}"
