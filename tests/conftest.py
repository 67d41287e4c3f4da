"""What every test shares: one thread (the suite runs on small machines), the same random numbers each time, and an end
where another library no longer has what we use: tests/test_platform.py then says what, and nothing else runs.
"""

import gc
import os
import runpy
import warnings
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the hub's library reads it: no test waits for a network

PLATFORM = Path(__file__).with_name("test_platform.py")
# Begun first, so that no process ends with one of them while the others have nothing left to do.
LONG = frozenset({"test_fuzz.py", "test_kill.py", "test_environments.py", "test_train_launched.py"})
BROKEN = pytest.StashKey[bool]()  # a fact about another library no longer holds


@pytest.fixture(autouse=True, scope="session")
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)  # again: a command that ran in this process may have set its own number
    # without a device, torch.manual_seed costs a note of who asked for each kind that there is none of
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.path != PLATFORM, item.path.name not in LONG))  # stable: the rest keeps its order


def pytest_collection_finish():
    """What was imported stays: left out of the garbage collector's rounds, one of which ends every training run."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Half surrogate pairs in what a test printed would end a run in several processes, which exchange UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """Go on to the other tests only when every fact of test_platform.py holds."""
    before = item.session.testsfailed
    result = yield
    is_fact = item.path == PLATFORM and "fact" in item.fixturenames
    if is_fact and item.session.testsfailed > before:
        item.session.stash[BROKEN] = True
    if item.session.stash.get(BROKEN, False) and (nextitem is None or nextitem.path != PLATFORM):
        item.session.shouldfail = "another library has changed: the failures of test_platform.py say where"
    return result


def pytest_collectreport(report):
    """A file that cannot be imported may be the first to meet a rename, before any test runs."""
    if report.failed:
        facts = runpy.run_path(str(PLATFORM))
        with warnings.catch_warnings(action="ignore"):  # of libraries, while they are imported
            broken = [sentence for sentence in map(facts["broken"], sorted(facts["NEEDS"])) if sentence]
        if broken:
            pytest.exit("another library has changed:\n" + "\n".join(broken), returncode=1)
