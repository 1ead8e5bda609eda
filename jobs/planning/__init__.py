"""The prediction of what a translation will take: rates measured here, and the arithmetic on them."""
