"""A library that somebody else may have put there is not loaded, whoever's folder the cache is."""

import logging
import os
import stat
from types import SimpleNamespace

import pytest

from frankenlm.kernels import build, trust

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="this system has no users as POSIX knows them")
NAME = "frankenlm_kernels.so"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The cache in a folder of its own, a home beside it, and a compiler that writes a word."""
    (tmp_path / "shared").mkdir(mode=0o700)
    monkeypatch.setenv("FRANKENLM_CACHE", str(tmp_path / "shared"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FRANKENLM_CXXFLAGS", raising=False)
    compiled = []

    def compile_library(sources, output, flags=()):
        compiled.append(output)
        output.write_bytes(b"ours")
        output.chmod(0o755)
        return output

    monkeypatch.setattr(build, "compile_library", compile_library)
    folder = tmp_path / "shared" / build.fingerprint()
    return SimpleNamespace(root=tmp_path, shared=tmp_path / "shared", folder=folder, compiled=compiled)


def as_if(monkeypatch, path, **changes):
    """Let a file look as if it belonged to somebody else, or had another mode."""
    plain = os.lstat

    def lstat(asked, *args, **kwargs):
        found = plain(asked, *args, **kwargs)
        if os.fspath(asked) != os.fspath(path):
            return found
        names = ("st_mode", "st_uid", "st_gid")
        return SimpleNamespace(**{name: changes.get(name, getattr(found, name)) for name in names})

    monkeypatch.setattr(trust.os, "lstat", lstat)


def test_it_is_built_once_and_for_this_user_alone(place, caplog):
    library = build.build()
    assert library == place.folder / NAME and build.build() == library and place.compiled == [library]
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert not caplog.records


STRANGER = 4242
SUSPICIOUS = {
    "folder of another user": (lambda place: place.folder, {"st_uid": STRANGER}, "belongs to another user"),
    "library of another user": (lambda place: place.folder / NAME, {"st_uid": STRANGER}, "belongs to another user"),
    "cache of another user": (lambda place: place.shared, {"st_uid": STRANGER}, "belongs to another user"),
    "parent of another user": (lambda place: place.root, {"st_uid": STRANGER}, "belongs to another user"),
    "cache that all may write": (lambda place: place.shared, {"st_mode": stat.S_IFDIR | 0o777}, "mode 0777"),
    "cache that a group may write": (
        lambda place: place.shared,
        {"st_mode": stat.S_IFDIR | 0o770, "st_gid": STRANGER},
        "mode 0770",
    ),
    "library that all may write": (lambda place: place.folder / NAME, {"st_mode": stat.S_IFREG | 0o757}, "mode 0757"),
    "library that is a link": (lambda place: place.folder / NAME, {"st_mode": stat.S_IFLNK | 0o777}, "is a link"),
}


@pytest.mark.parametrize("kind", SUSPICIOUS)
def test_what_others_can_reach_is_passed_over(kind, place, monkeypatch, caplog):
    """With one line, and for a place in the user's own folder."""
    find, changes, reason = SUSPICIOUS[kind]
    build.build()
    planted = place.folder / NAME
    planted.write_bytes(b"theirs")
    trust.record(planted)
    suspicious = find(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.root.parent / f"home-{place.root.name}"))
    as_if(monkeypatch, suspicious, **changes)
    with caplog.at_level(logging.WARNING):
        library = build.build()
    assert library.read_bytes() == b"ours" and library != planted and planted.read_bytes() == b"theirs"
    assert "home-" in str(library)
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(suspicious) in line and reason in line and "\n" not in line


def test_without_a_place_of_ones_own_a_folder_of_the_process_is_used(place, monkeypatch, caplog):
    as_if(monkeypatch, place.root, st_uid=STRANGER)
    with caplog.at_level(logging.WARNING):
        library = build.build()
    assert place.root not in library.parents and library.read_bytes() == b"ours"
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    assert len(caplog.records) == 2


def test_folders_of_the_system_and_of_ones_own_group_are_no_danger(place, monkeypatch, caplog):
    build.build()
    own = os.geteuid()
    for changes in (
        {"st_uid": 0},
        {"st_mode": stat.S_IFDIR | 0o1777},
        {"st_mode": stat.S_IFDIR | 0o775, "st_uid": own, "st_gid": own},
    ):
        as_if(monkeypatch, place.shared, **changes)
        assert build.build() == place.folder / NAME
    assert not caplog.records and len(place.compiled) == 1


def test_a_link_in_the_cache_is_not_followed(place, monkeypatch):
    elsewhere = place.root / "elsewhere"
    elsewhere.mkdir()
    place.folder.symlink_to(elsewhere)
    library = build.build()
    assert not list(elsewhere.iterdir()) and place.shared not in library.parents
    place.folder.unlink()
    linked = place.root / "link"
    linked.symlink_to(place.shared)
    monkeypatch.setenv("FRANKENLM_CACHE", str(linked))
    assert build.build() == place.folder / NAME


@pytest.mark.parametrize("damage", ["other bytes", "cut", "no hash", "hash of another", "hash that is no text"])
def test_a_library_that_is_not_as_it_was_built_is_built_anew(damage, place):
    library = build.build()
    beside = library.with_name(f"{NAME}.sha256")
    match damage:
        case "other bytes":
            library.write_bytes(b"OURS")
        case "cut":
            library.write_bytes(b"ou")
        case "no hash":
            beside.unlink()
        case "hash of another":
            beside.write_text("0" * 64)
        case _:
            beside.write_bytes(b"\xff\xfe")
    assert build.build() == library and len(place.compiled) == 2
    assert library.read_bytes() == b"ours" and trust.is_as_recorded(library)


def test_new_folders_are_private_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        trust.make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o700, 0o700]
