"""frankenlm: build, train, shrink and break unusual small language models.

The parts live in the top-level folders of the repository and are installed as `frankenlm.modeling`,
`frankenlm.trainer_ext`, `frankenlm.degradation`, `frankenlm.sharing` and `frankenlm.kernels`.
"""

from pathlib import Path

__version__ = "0.1.0"

# A plain checkout that nobody installed (a Space runs app.py that way) finds the parts beside this folder.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "modeling" / "__init__.py").is_file():
    __path__.append(str(_root))
