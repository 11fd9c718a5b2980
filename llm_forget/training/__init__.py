"""Train a model: the trainer, its callbacks and checkpoints, and the job that prepares, runs and records training."""
