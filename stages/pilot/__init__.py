"""Stage ``pilot``: a few small fine-tunes, and from them the loss that every boundary would come to."""
