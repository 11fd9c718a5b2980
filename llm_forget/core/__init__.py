"""Files, digests, errors and settings, which all other parts of the package use. The core imports none of them."""

__version__ = "0.1.0"
