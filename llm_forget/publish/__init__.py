"""What may leave the machine: the bundle of files, the model card, the Hub."""
