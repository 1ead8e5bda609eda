"""What `doctor` looks at: the machine, and the services that a run needs."""
