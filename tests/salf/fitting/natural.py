"""From natural parameters to those that laws are fitted in."""

import numpy as np


def internal(law, natural):
    """θ [..., d] of natural parameters [..., d]; those held as logarithms have to be positive."""
    return np.where(law.logarithmic, np.log(np.where(law.logarithmic, natural, 1.0)), natural)
