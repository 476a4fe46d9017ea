"""Stage ``signals``: what rival rules for the boundary see, by forward passes or by one pass with gradients."""
