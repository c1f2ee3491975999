"""Domain streams, shards and readers: records from files, hubs and the embedded sample."""
