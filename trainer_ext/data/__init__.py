"""From files, rows or a hub name to padded batches: documents, tokenizer, packed rows, the cache between runs."""
