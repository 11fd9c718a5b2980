"""Exceptions of this package.

Every error that this package raises on purpose is an `LlmForgetError`, and its text never quotes a row: the command
line prints that text and exits with the class's ``exit_code``. For any other exception it prints only class and place
(see `safe_errors`). Each class also derives from a built-in exception, so ``except ValueError`` works, too.
"""

import contextlib
from collections.abc import Iterator


class LlmForgetError(Exception):
    """Base class of all errors of this package; the command line exits with its ``exit_code``."""

    exit_code = 2


class ConfigError(LlmForgetError, ValueError):
    """An option, argument or recipe key that is unknown, invalid or has no effect."""


class DataError(LlmForgetError, ValueError):
    """Rows, or a file of rows, that cannot be used."""


class ModelError(LlmForgetError, ValueError):
    """A model, tokenizer or adapter that cannot be used as asked."""


class RunError(LlmForgetError, ValueError):
    """A run directory that is missing, incomplete, damaged or of another run."""


class EvaluationError(LlmForgetError, ValueError):
    """A suite, metric, attack or policy that cannot be computed."""


class EvidenceError(LlmForgetError, ValueError):
    """A ledger, version, deletion request or certificate that does not allow the requested action."""


class PublishError(LlmForgetError, ValueError):
    """Something that must not be published, or cannot be pulled."""


class AdapterRefused(ModelError):
    """An adapter whose files were changed after they were written, or whose origin cannot be checked."""

    exit_code = 4


class EvidenceBroken(EvidenceError):
    """A ledger, certificate or signature that was altered."""

    exit_code = 6


class MissingFileError(LlmForgetError, FileNotFoundError):
    """A file or folder that does not exist."""


class ExistingFileError(LlmForgetError, FileExistsError):
    """A file that exists and would be overwritten."""


class FileSystemError(LlmForgetError, OSError):
    """A file, folder or disk that cannot be read or written."""


class NoPermissionError(LlmForgetError, PermissionError):
    """A file or folder that this user may not read or write."""


class MissingPackageError(LlmForgetError, ModuleNotFoundError):
    """An optional package that is not installed; the text gives the command that installs it."""


class HubError(LlmForgetError, ConnectionError):
    """The Hub refused, did not answer, or answered something unreadable."""


class NotEnoughMemoryError(LlmForgetError, MemoryError):
    """A batch or row that does not fit into memory."""


class NonFiniteLossError(LlmForgetError, FloatingPointError):
    """A loss or gradient that is NaN or infinite."""


class UnsupportedError(LlmForgetError, NotImplementedError):
    """A combination that is not supported."""


@contextlib.contextmanager
def library_errors(kind: type[LlmForgetError], *types: type[Exception]) -> Iterator[None]:
    """Raise errors of a library as ``kind`` with the same text. Use it only around code that handles no rows.

    Args:
        types: exceptions to translate; errors of this package and file errors of the system pass unchanged.
    """
    try:
        yield
    except types as error:
        if isinstance(error, LlmForgetError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise kind(str(error)) from error
