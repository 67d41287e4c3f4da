"""Sweeps: many training runs from one YAML grid, each in a folder of its own, and what they show together."""
