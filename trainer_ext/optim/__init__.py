"""Around the optimizer: a guard for gradients, two-stage schedules, signs that flip."""
