"""What `evaluate` does: judge blocks of pairs, summarise, rank, draw."""
