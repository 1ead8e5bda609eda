"""Molecular clouds: isothermal magnetohydrodynamics in a periodic box, and maps of what is seen of it."""
