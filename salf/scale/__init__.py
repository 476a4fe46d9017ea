"""Estimates of what each boundary costs a model, from its configuration alone: ``salf scale``."""
