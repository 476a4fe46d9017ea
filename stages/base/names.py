"""What a network calls its parameters once it is loaded: not always what its files call them.

transformers joins weights that files hold apart (a mixture's experts), so the files do not tell.
"""

from torch import nn


def parameter_names(network: nn.Module) -> tuple[str, ...]:
    """As ``named_parameters()`` gives them, sorted; a tied head has none of its own."""
    return tuple(sorted(name for name, _ in network.named_parameters()))
