"""From prompts to texts: sampling options, streaming, conversation, and what a memory was asked for."""
