"""Server arithmetic: one aggregation rule a file; numpy only."""
