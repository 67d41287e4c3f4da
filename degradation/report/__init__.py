"""From result files to curves, critical levels, figures, sentences and a page."""
