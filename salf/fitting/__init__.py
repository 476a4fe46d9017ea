"""Fits the laws of ``laws.py`` to curves, and bootstraps what was measured."""
