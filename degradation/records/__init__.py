"""Rows that cannot be lost: keys and checks, the journal, locks between processes, recovery, the exported file."""
