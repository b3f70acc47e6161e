"""How the morning page is made: what to say, which pictures to show, how to draw them."""
