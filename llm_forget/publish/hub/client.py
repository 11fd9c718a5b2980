"""The Hub's own client, its errors as sentences. Tokens are its business: HF_TOKEN or what `hf auth login` stored."""

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
AGAIN = "give the same command again"
CLIENT = {"huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2"}
SIGNED = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # addresses to upload to carry a signature behind the ?


def client() -> HfApi:
    """The client, with this package's name; where nobody watches, without progress bars."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from llm_forget.core import __version__

    if not sys.stderr.isatty():
        disable_progress_bars()
    logger = logging.getLogger("huggingface_hub.utils._http")
    if not any(isinstance(known, Unsigned) for known in logger.filters):
        logger.addFilter(Unsigned())
    return HfApi(library_name="llm_forget", library_version=__version__)


class Unsigned(logging.Filter):
    """Takes what signs an address out of what the client logs when it tries again."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = SIGNED.sub(r"\1", record.getMessage()), ()
        return True


@contextmanager
def speaking(repository: str) -> Iterator[None]:
    """Whatever goes wrong with the Hub leaves as one sentence, without token and without address.

    Only what the client raised is said in other words; a full disk, and what this package raises, leave as they are.

    Raises:
        ConnectionError: what happened, and what to do.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        yield
    except HfHubHTTPError as error:
        raise HubError(_refused(error, repository)) from error
    except HTTPError as error:
        raise HubError(_broken(error)) from error
    except json.JSONDecodeError as error:
        raise HubError(f"the Hub answered something that is no JSON; {AGAIN}") from error
    # Beside its own errors, the client lets through what a strange answer, a strange setting or hf_xet makes of it.
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        if not _of_client(error) or (isinstance(error, OSError) and error.errno is not None and _of_disk(error)):
            raise
        raise HubError(_unforeseen(error, repository)) from error


def _of_client(error: BaseException) -> bool:
    """Whether it came out of the client, and not from the code around it."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(frame.f_globals.get("__name__", "").partition(".")[0] in CLIENT for frame in frames)


def _of_disk(error: OSError) -> bool:
    return not isinstance(error, ConnectionError | TimeoutError)


def _unforeseen(error: Exception, repository: str) -> str:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    cause = error.__cause__
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no token for the Hub; {LOGIN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it"
    if isinstance(cause, HTTPError):  # of an upload thread, or of a download that looked into its cache then
        said = _refused(cause, repository) if isinstance(cause, HfHubHTTPError) else _broken(cause)
        return f"an upload to '{repository}' did not end: {said}" if isinstance(error, RuntimeError) else said
    if isinstance(error, UnicodeEncodeError):
        return f"the token holds a character that no token has; {LOGIN}"
    if isinstance(error, ImportError):
        return "a proxy is set that the Hub's client cannot use as it is installed; `pip install socksio`, or unset it"
    if isinstance(error, OSError | RuntimeError):  # hf_xet tells the status in words only
        status = re.search(r"\b([45]\d\d)\b", re.sub(r"https?://\S+", "", str(error)))
        return _said(int(status[1]), repository) if status else _broken(cause or error)
    if any(
        frame.f_globals.get("__name__", "").startswith("httpx") for frame, _ in traceback.walk_tb(error.__traceback__)
    ):
        return "HF_ENDPOINT or the proxy that is set (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY) is no address; correct it"
    return f"the Hub answered something else than its client understands ({type(error).__name__}); {AGAIN}"


def _broken(error: BaseException) -> str:
    """Why there was no answer. By the names of classes: of which library they are depends on the client's version."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    said = {
        "ProxyError": "the proxy did not let this through; look at HTTPS_PROXY and NO_PROXY",
        "UnsupportedProtocol": "HF_ENDPOINT is no address; it begins with https://",
        "TimeoutException": f"the Hub did not answer in time; {AGAIN}",
        "ConnectError": f"the Hub could not be reached; look at the network, HF_ENDPOINT and proxies, then {AGAIN}",
    }
    known = next((words for name, words in said.items() if name in kinds), None)
    return known or f"the connection to the Hub broke ({type(error).__name__}); {AGAIN}"


def _refused(error: Any, repository: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no such revision; name a branch, a tag or a commit of it"
    if status == 401 and "Invalid credentials" in (error.response.headers.get("X-Error-Message") or ""):
        return f"the Hub does not know this token (401); {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"'{repository}' is not on the Hub, or your token may not see it ({status}); {LOGIN}"
    return _said(status, repository)


def _said(status: int, repository: str) -> str:
    said = {
        401: f"the Hub does not know this token (401); {LOGIN}",
        403: f"your token may not write to '{repository}' (403); take one with write access",
        404: f"the Hub does not have what was asked of '{repository}' (404); {AGAIN}",
        409: f"the Hub says that this conflicts with what is there (409); {AGAIN}",
        412: f"somebody else has changed '{repository}' meanwhile (412); look at it, then {AGAIN}",
        413: f"a file is larger than the Hub takes for '{repository}' (413)",
        429: f"the Hub asks to wait, too many requests (429); wait some minutes, then {AGAIN}",
    }
    return said.get(status) or f"the Hub could not do it ({status}); {AGAIN}"
