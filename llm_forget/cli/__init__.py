"""The command line. Each file in this folder defines a group of commands."""
