"""Recovery: damaged models are trained on given text, and measured again on the way; see the README one folder up."""
