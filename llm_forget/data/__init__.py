"""Read rows from files, folders and Hub data sets, check them, and convert them to token ids."""
