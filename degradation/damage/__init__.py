"""What a level does to a weight: noise, masks and quantisation as pure functions of values, level and address."""
