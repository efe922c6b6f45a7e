"""From files and simulations to what the networks take. Nothing here knows a model."""
