"""Implementations of techniques: a module for each family of words in :data:`salf.methods.WORDS`."""
