"""`python -m frankenlm VERB`: the command, where the folder of installed commands is not on the path."""

import sys

from .command import main

sys.exit(main())
