"""What a dimension of a tensor is made of: axes, what two of them have in common, and integers that are sizes."""
