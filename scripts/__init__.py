"""The commands: `python scripts/train.py` in a clone, `frankenlm train` where the package is installed.

bench/, evidence/, pictures/ and packages/ are tools of the repository and no part of what is installed.
"""
