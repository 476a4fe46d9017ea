"""The study's analysis: which selector is near the best boundary, and at what cost."""
