"""The local loop, the client's disk and the Flower ClientApp."""
