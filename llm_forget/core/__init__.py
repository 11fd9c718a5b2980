"""What every other folder builds on: files, digests, errors and registries."""
