"""Whether the page or the server of this container answers: for the HEALTHCHECK of the Dockerfile.

    python -m frankenlm.sharing.server.health [URL ...]

Exit code 0 where one of the addresses answers with success. Standard library only: it runs every half minute.
"""

import sys
import urllib.request
from collections.abc import Sequence

ADDRESSES = ("http://127.0.0.1:8000/health", "http://127.0.0.1:7860/")
PATIENCE = 4.0  # seconds an address may take; both together stay within the Dockerfile's timeout


def answers(address: str) -> bool:
    """Whether an address answers with success."""
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE) as reply:
            return reply.status == 200
    except (OSError, ValueError):  # nobody there, an error as a reply, no address
        return False


def main(argv: Sequence[str]) -> int:
    return 0 if any(map(answers, argv or ADDRESSES)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
