"""What every test shares: one thread (the suite runs on small machines) and the same random numbers each time."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def single_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
