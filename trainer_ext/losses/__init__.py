"""What a run learns from besides its model's own loss: how that one is counted, and a teacher."""
