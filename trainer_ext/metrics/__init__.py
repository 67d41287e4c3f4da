"""Measures of language models, as pure functions: of likelihoods in language.py, of texts in text.py."""
