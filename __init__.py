"""Met only where `import frankenlm` finds this clone itself, from the folder it lies in, before any installed package.

Python would take the clone for an empty namespace package. It becomes the package instead: the face in frankenlm/, and
the parts in the folders beside it. Nothing else imports this file, and no wheel carries it.
"""

from pathlib import Path

_clone = Path(__file__).resolve().parent
__path__ = [str(_clone / "frankenlm"), str(_clone)]
exec(compile((_clone / "frankenlm" / "__init__.py").read_text(encoding="utf-8"), __file__, "exec"))
