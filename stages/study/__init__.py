"""The study's analysis: which rule for the boundary is near the best one, and at what cost."""
