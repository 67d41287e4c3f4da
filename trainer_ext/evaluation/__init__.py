"""From saved models and texts to figures: likelihood, continuations, several models side by side."""
