"""What the flags of generation are told in words. Nothing here needs torch."""

CONVERSATION_HELP = (
    "/reset forgets everything, /seed N sets the seed, /quit ends; Ctrl-C ends the text that is being written"
)
DEMO_TOKENS = 40
