"""Splits of a model's weights into fit- and reset-hypothesis: small objects, called with the model."""
