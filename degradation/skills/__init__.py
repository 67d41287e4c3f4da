"""Which skills break first, on questions that the undamaged model can do."""
