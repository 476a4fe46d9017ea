"""From raw rows to prompts and answer tokens, split without leaks."""
