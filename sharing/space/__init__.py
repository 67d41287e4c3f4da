"""The page that `frankenlm app` opens: one file a tab."""
