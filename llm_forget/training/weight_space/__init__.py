"""Unlearning methods that change the weights in one computed step, without a trainer."""
