"""``dvrt figures``: the paper's figures that need no GPU, made again, and the page about them."""
