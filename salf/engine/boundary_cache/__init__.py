"""The hidden states at the boundary, computed once: frozen layers need no second look at the same data.

Frozen layers run in eval mode, so dropout in them is off by definition: they compute one fixed function.
A row's float32 result depends in its last bits on how many rows share the pass, so that states from memory,
from disk and continued from a shallower boundary, which all come from the same passes over the same
examples, are equal bit by bit; without a cache the passes are those of the training batches, and states
agree to about 1e-6 of their size.
"""
