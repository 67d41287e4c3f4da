"""The functions of modeling/checks.py, without the rest of modeling, whose import takes seconds.

They live there because a checkpoint carries them along; a command's help page and a user's mistake cannot wait for the
architectures. So the file itself is run again here, under another name.
"""

import importlib.util
from pathlib import Path

_folder = importlib.util.find_spec("frankenlm.modeling").submodule_search_locations[0]
_spec = importlib.util.spec_from_file_location(f"{__name__}.file", Path(_folder) / "checks.py")
_file = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_file)

check_choice, check_keys, suggest = _file.check_choice, _file.check_keys, _file.suggest
