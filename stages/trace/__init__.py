"""Stage ``trace``: how far every latent space is from the answer's meaning."""
