"""The steps of `evaluate`: judge blocks of pairs, summarise, rank, draw."""
