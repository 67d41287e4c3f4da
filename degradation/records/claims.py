"""Which cells the processes of one run have taken: a file each, which only the first can make."""

import hashlib
import json
import os
import re
from pathlib import Path

CLAIM = re.compile(r"[0-9a-f]{40}")


class Claims:
    """The claims of one process in the folder that all share."""

    def __init__(self, folder: Path, rank: int):
        self.folder = folder
        self.rank = rank

    def take(self, name: str) -> bool:
        """Whether this process is the first of this run to claim a name."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / hashlib.sha1(name.encode()).hexdigest()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"name": name, "rank": self.rank}, file)
        return True

    def forget(self) -> None:
        """Remove the claims of an earlier run; done by rank 0 when it opens."""
        if not self.folder.is_dir() or self.folder.is_symlink():
            return
        for path in self.folder.iterdir():
            if CLAIM.fullmatch(path.name) and path.is_file():  # what else lies there is not ours
                path.unlink()
