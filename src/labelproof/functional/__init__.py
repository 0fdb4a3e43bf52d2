"""Pure functions from tensors to tensors: the equations the methods are made of. Imports torch only."""
