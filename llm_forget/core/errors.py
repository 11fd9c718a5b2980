"""Exceptions of this package. Each class also derives from a built-in exception. No error text quotes a row."""

import contextlib
from collections.abc import Iterator


class LlmForgetError(Exception):
    """Base class of all errors of this package. The command line prints the text and exits with ``exit_code``."""

    exit_code = 2


class ConfigError(LlmForgetError, ValueError):
    """Raised when an option, argument or recipe key is unknown, invalid or has no effect."""


class DataError(LlmForgetError, ValueError):
    """Raised when rows, or a file of rows, cannot be used."""


class ModelError(LlmForgetError, ValueError):
    """Raised when a model, tokenizer or adapter cannot be used in the requested way."""


class RunError(LlmForgetError, ValueError):
    """Raised when a run directory is missing, incomplete or damaged, or belongs to another run."""


class EvaluationError(LlmForgetError, ValueError):
    """Raised when a suite, metric or attack cannot be computed, or a policy cannot be applied."""


class EvidenceError(LlmForgetError, ValueError):
    """Raised when a ledger, version, deletion request or certificate does not allow the requested action."""


class PublishError(LlmForgetError, ValueError):
    """Raised when a model must not be published, or a published model cannot be pulled."""


class AdapterRefused(ModelError):
    """Raised when a file of an adapter was changed after it was written, or the origin of an adapter is unknown."""

    exit_code = 4


class EvidenceBroken(EvidenceError):
    """Raised when a ledger, certificate or signature was altered."""

    exit_code = 6


class MissingFileError(LlmForgetError, FileNotFoundError):
    """Raised when a file or folder does not exist."""


class ExistingFileError(LlmForgetError, FileExistsError):
    """Raised when a file exists and would be overwritten."""


class FileSystemError(LlmForgetError, OSError):
    """Raised when a file, folder or disk cannot be read or written."""


class NoPermissionError(LlmForgetError, PermissionError):
    """Raised when this user may not read or write a file or folder."""


class MissingPackageError(LlmForgetError, ModuleNotFoundError):
    """Raised when an optional package is not installed; the text gives the command that installs it."""


class HubError(LlmForgetError, ConnectionError):
    """Raised when the Hub refuses a request, does not answer, or sends an unreadable answer."""


class NotEnoughMemoryError(LlmForgetError, MemoryError):
    """Raised when a batch or row does not fit into memory."""


class NonFiniteLossError(LlmForgetError, FloatingPointError):
    """Raised when a loss or gradient is NaN or infinite."""


class UnsupportedError(LlmForgetError, NotImplementedError):
    """Raised when a combination of model, settings or packages is not supported."""


@contextlib.contextmanager
def library_errors(kind: type[LlmForgetError], *types: type[Exception]) -> Iterator[None]:
    """Convert exceptions of ``types`` that a ``with`` block raises into ``kind``, with the same text.

    Errors of this package and file errors are not converted. The block must not process rows, because the text of a
    library's exception may quote them.
    """
    try:
        yield
    except types as error:
        if isinstance(error, LlmForgetError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise kind(str(error)) from error
