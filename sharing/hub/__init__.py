"""The Hub: what is pushed, its card, and what must not leave this machine."""
