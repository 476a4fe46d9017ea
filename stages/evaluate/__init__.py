"""Stage ``evaluate``: scores and costs of the fine-tuned models and of baselines."""
