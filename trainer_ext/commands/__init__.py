"""What the scripts do once their flags are read: one file a command, imported after the help page was asked for."""
