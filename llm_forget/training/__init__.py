"""The one trainer and what a training job is made of."""
