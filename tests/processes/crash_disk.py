"""What a crash of the system would leave of a folder: contents as of the last fsync, names as of their folder's."""

import os
from pathlib import Path

# opened anew at every start, and worth nothing after a crash: a lock and what processes have claimed
FLEETING = ("lock", "claims")


class CrashDisk:
    """Watches os.fsync and os.replace; `monkeypatch` puts them back."""

    def __init__(self, monkeypatch):
        self.contents: dict[int, bytes] = {}  # by inode
        self.names: dict[int, dict[str, int]] = {}  # by inode of the folder: name -> inode
        self.replaced: list[str] = []
        self._fsync, self._replace = os.fsync, os.replace
        monkeypatch.setattr(os, "fsync", self._note)
        monkeypatch.setattr(os, "replace", self._check_and_replace)

    def _note(self, descriptor: int) -> None:
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}")
        inode = os.fstat(descriptor).st_ino
        if path.is_dir():
            self.names[inode] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[inode] = path.read_bytes()

    def _check_and_replace(self, source, target) -> None:
        """A new name may reach the disk before the bytes behind it, so these have to be there first."""
        source = Path(source)
        assert self.contents.get(source.stat().st_ino) == source.read_bytes(), f"{target} took its place unsynced"
        self._replace(source, target)
        self.replaced.append(Path(target).name)

    def check(self, folder: Path) -> set[str]:
        """Assert that all below a folder would survive a crash as it is now; return the names of its files."""
        found = set()
        for path in folder.rglob("*"):
            if set(path.relative_to(folder).parts) & set(FLEETING):
                continue
            inode = path.stat().st_ino
            there = self.names[path.parent.stat().st_ino]
            assert there.get(path.name) == inode, f"{path.name}: its name was not synced"
            if path.is_file():
                synced = self.contents.get(inode, b"")
                assert synced == path.read_bytes(), f"{path.name}: its content was not synced"
                found.add(path.name)
        return found
