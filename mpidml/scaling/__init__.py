"""Parts of a scaling study: its folder, its points measured and simulated, the numbers, words and picture made of them."""
