"""Lineage: what made an artifact, whether it still is what was made, and what changed since."""
