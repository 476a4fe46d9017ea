"""Suffix training: the loop, its steps, costs, checkpoints and processes; what trains, and how fast, a room says."""
