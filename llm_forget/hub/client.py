"""The Hub's own client, its errors as sentences. Tokens are its business: HF_TOKEN or what `hf auth login` stored."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
AGAIN = "give the same command again: what is there already is not sent twice"
SIGNED = re.compile(r"(https?://[^\s?'\"]+)\?[^\s'\"]+")  # addresses to upload to carry a signature behind the ?


def client() -> HfApi:
    """The client, with this package's name; where nobody watches, without progress bars."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    from llm_forget import __version__

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

    Raises:
        ConnectionError: what happened, and what to do.
    """
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise ConnectionError(f"there is no token for the Hub; {LOGIN}") from error
    except HfHubHTTPError as error:
        raise ConnectionError(_refused(error, repository)) from error
    except (HTTPError, LocalEntryNotFoundError) as error:  # the latter where a download was not answered
        raise ConnectionError(f"the connection to the Hub broke ({type(error).__name__}); {AGAIN}") from error
    except json.JSONDecodeError as error:
        raise ConnectionError(f"the Hub answered something that is no JSON; {AGAIN}") from error
    except RuntimeError as error:  # the client wraps what happens in its upload threads
        if not isinstance(error.__cause__, HTTPError):
            raise
        cause = error.__cause__
        said = _refused(cause, repository) if isinstance(cause, HfHubHTTPError) else f"{type(cause).__name__}; {AGAIN}"
        raise ConnectionError(f"an upload to '{repository}' did not end: {said}") from error


def _refused(error: Any, repository: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return f"'{repository}' has no such revision; name a branch, a tag or a commit of it"
    if status == 401 and "Invalid credentials" in (error.response.headers.get("X-Error-Message") or ""):
        return f"the Hub does not know this token (401); {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"'{repository}' is not on the Hub, or your token may not see it ({status}); {LOGIN}"
    said = {
        401: f"the Hub does not know this token (401); {LOGIN}",
        403: f"your token may not write to '{repository}' (403); take one with write access",
        404: f"the Hub has no such file of '{repository}' (404)",
        409: f"the Hub says that this conflicts with what is there (409); {AGAIN}",
        412: f"somebody else has changed '{repository}' meanwhile (412); look at it, then {AGAIN}",
        413: f"a file is larger than the Hub takes for '{repository}' (413)",
        429: f"the Hub asks to wait, too many requests (429); wait some minutes, then {AGAIN}",
    }
    return said.get(status) or f"the Hub could not do it ({status}); {AGAIN}"
