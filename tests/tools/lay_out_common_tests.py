"""Lay out transformers' own common model tests, of the installed version, under .cache/transformers_tests.

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

TARGET = Path(__file__).resolve().parents[2] / ".cache" / "transformers_tests"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
}


def main() -> None:
    installed = version("transformers")
    if (TARGET / "VERSION").is_file() and (TARGET / "VERSION").read_text() == installed:
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*command, "--dest", folder, f"transformers=={installed}"], check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        with tarfile.open(archive) as source:
            source.extractall(folder, filter="data")
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.parent.mkdir(exist_ok=True)
        shutil.copytree(Path(folder) / f"transformers-{installed}" / "tests", TARGET)
    (TARGET / "__init__.py").touch()
    for name, text in STAND_INS.items():
        path = TARGET / name
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)
    (TARGET / "VERSION").write_text(installed)


if __name__ == "__main__":
    main()
