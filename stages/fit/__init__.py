"""Scaling laws over depth, their rivals and intervals, and the gain of every layer."""
