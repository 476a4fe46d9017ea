"""Stage ``base``: brings the base model in and shards it by layer."""
