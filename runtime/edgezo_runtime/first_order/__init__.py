"""True gradients, and the methods that use them."""
