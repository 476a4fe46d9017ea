"""Chooses the boundary: what to freeze, why, how sure, and what every other choice would cost."""
