"""What a text is worth, in numbers: graded answers, loops, words, and the names of all measures."""
