"""The durable home of cells, outputs, dead letters and progress: one directory, one SQLite file, one writer."""
