"""What every other part uses: files, digests, errors, settings. Imports nothing else of this package."""

__version__ = "0.1.0"
