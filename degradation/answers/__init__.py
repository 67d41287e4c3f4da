"""From a prompt to the text of a row, for causal, masked and picture models, alone or in batches."""
