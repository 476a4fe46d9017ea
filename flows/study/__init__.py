"""The study: many fine-tunes over data sets, boundaries and seeds, each kept as soon as it is there."""
