"""Values and laws: what every other folder speaks in; imports nothing of ours."""
