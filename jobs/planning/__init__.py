"""What a translation will take: rates measured here, and the arithmetic that follows."""
