"""Plug-ins of the product that write down what leaves a client, outside of what can fail."""
