"""One verb a file: settings in, a run directory out."""
