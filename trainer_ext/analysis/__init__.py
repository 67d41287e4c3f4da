"""Where the time of a training run goes: measured while it trains, told afterwards."""
