"""Publishing a run: the bundle of files, the model card and the Hub."""
