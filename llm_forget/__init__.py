"""Make a language model forget, and measure whether it did."""

__version__ = "0.1.0"
