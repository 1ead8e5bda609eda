"""The checks of `doctor`: the machine, and the services that a run needs."""
