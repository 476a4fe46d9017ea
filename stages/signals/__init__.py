"""Stage ``signals``: evidence for other selectors, measured on the model or predicted from small fine-tunes."""
