"""One forward pass of a copy of a model, watched: what its tensors are made of and how its integers are used."""
