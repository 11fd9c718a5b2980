"""Load models, attach and save adapters, merge adapters into models, and export models."""
