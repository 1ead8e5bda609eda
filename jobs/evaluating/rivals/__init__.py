"""Other ways from observed maps of clouds to densities and fields, all with one `predict`, and how they are judged."""
