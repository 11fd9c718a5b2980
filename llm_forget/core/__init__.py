"""Configuration, file formats, digests and errors, for all other folders. This folder imports no other folder."""

__version__ = "0.1.0"
