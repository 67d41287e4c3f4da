"""Lay out transformers' own common model tests, of the installed version, under .cache/transformers-VERSION.

The wheel leaves them out, so they come from the source distribution. The two mixins that the source distribution
lacks in turn (exporters, generation) get empty stand-ins. tests/modeling/test_common_hf.py runs them on our classes.
Usage: python tests/tools/lay_out_common_tests.py
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
}


def main() -> None:
    installed = version("transformers")
    target = CACHE / f"transformers-{installed}" / "transformers_tests"
    if (target / "complete").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        done = subprocess.run([*command, "--dest", folder, f"transformers=={installed}"])
        if done.returncode:
            sys.exit(f"the tests of transformers {installed} could not be fetched; what pip said stands above.")
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(folder) / f"transformers-{installed}" / "tests", target)
    (target / "__init__.py").touch()
    for name, text in STAND_INS.items():
        path = target / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (target / "complete").touch()


if __name__ == "__main__":
    main()
