"""sstune: fine-tune backprop-trained vision networks with sign-symmetry learning rules, and attack them."""

__version__ = "0.1.0"
