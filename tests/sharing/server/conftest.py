"""Servers on ports of their own, in this process, and OpenAI's client for them."""

import contextlib
import threading
import time

import openai
import pytest

from frankenlm.sharing.server.application import make_application
from frankenlm.sharing.server.engine import Engine, EngineLimits
from frankenlm.sharing.server.serving import PoliteServer, configure, take_address

MODELS = ("gpt2", "hybrid", "infinito", "ternary")


@contextlib.contextmanager
def serving(engines, key=None):
    """Serve engines; yields the address."""
    listening = take_address("127.0.0.1", 0)
    server = PoliteServer(configure(make_application(engines, key)), engines)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="session")
def serve():
    return serving


@pytest.fixture(scope="session")
def engines(opened):
    return {name: Engine(opened(name), EngineLimits(slots=4, queue=16, max_tokens=200)) for name in MODELS}


@pytest.fixture(scope="session")
def address(engines):
    with serving(engines) as found:
        yield found


@pytest.fixture(scope="session")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60) as found:
        yield found
