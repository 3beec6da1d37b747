"""Floor 2: files, corpora, splits and batches."""
