"""SALF."""
