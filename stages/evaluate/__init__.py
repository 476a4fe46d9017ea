"""Stage ``evaluate``: what the fine-tunes gained, what they cost, beside honest baselines."""
