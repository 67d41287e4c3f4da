"""Completions over HTTP, in the shapes of the OpenAI API."""
