"""The rooms of the pipeline: one per DVC stage, and ``common`` for what several of them share."""
