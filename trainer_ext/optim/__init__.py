"""What the optimizer does that torch does not: two-stage schedules, signs that flip."""
