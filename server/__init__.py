"""The round, the choice of nodes, checkpoints, reports and the Flower ServerApp."""
