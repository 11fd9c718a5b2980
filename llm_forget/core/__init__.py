"""Files, digests, errors and settings for the whole package. This folder imports no other part of the package."""

__version__ = "0.1.0"
