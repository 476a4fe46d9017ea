"""The hidden states at the boundary, computed once: frozen layers need no second look at the same data.

Frozen layers run in eval mode, so they compute one fixed function. A row's float32 result depends in its last bits on
how many rows share the pass. States from memory and from disk come from the same passes, and are equal bit by bit.
Without a cache they agree to about 1e-6 of their size.
"""
