"""Lesions of the most important units of a group, and of as many drawn at random; see the README one folder up."""
