"""Curves -> figures: which there are, how each is drawn, and what they share."""
