"""Many clients on this machine, through the same apps as a deployment."""
