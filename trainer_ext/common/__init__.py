"""Ground every part above the models stands on: one-line errors, whole files, logs, opening saved models."""
