"""The report stage: one self-contained page out of every artifact of the chain."""
