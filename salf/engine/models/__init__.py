"""The only room that knows architectures."""
