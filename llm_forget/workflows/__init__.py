"""The workflows, one file for each action: they take settings and write a run or a model."""
