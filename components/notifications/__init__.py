"""What operators are told of the nights, and how it reaches them."""
