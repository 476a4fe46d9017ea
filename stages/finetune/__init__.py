"""Stage ``finetune``: trains what the plan says, by a method, and saves what changed."""
