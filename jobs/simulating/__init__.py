"""A sky of our own: population, lenses, images, and arcs put around real galaxies."""
